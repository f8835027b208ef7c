// The picture: a thin layer over NiiVue that loads a scan with the label maps over it, and changes one thing at
// a time, for sending a large scan to the graphics card again takes longer than drawing it.

const { DRAG_MODE, MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } = globalThis.niivue

export const VIEWS = {
  all: { type: SLICE_TYPE.MULTIPLANAR, render: SHOW_RENDER.ALWAYS },
  axial: { type: SLICE_TYPE.AXIAL },
  coronal: { type: SLICE_TYPE.CORONAL },
  sagittal: { type: SLICE_TYPE.SAGITTAL },
  surface: { type: SLICE_TYPE.RENDER },
}

const LABEL_INTENT = 1002 // of NIfTI; NiiVue draws the border of such volumes at full strength
const HEAVY = 64e6 // voxels; from there on a change of the window waits until the hand rests
const REST = 180 // ms
const SLOW = 4e6 // voxels; from there on 3D takes a processor, without a graphics card, too long beside slices

export class Scene {
  /** What is drawn on a canvas; `onPlace` gets {mm, value, labels} wherever the crosshair goes. */
  constructor(canvas, onPlace) {
    this.canvas = canvas
    this.layers = new Map() // name of an overlay -> {image, raw, shown}
    this.niivue = new Niivue({
      backColor: [0.03, 0.035, 0.045, 1],
      crosshairColor: [0.45, 0.65, 0.85, 1],
      crosshairWidth: 0.15,
      crosshairWidthUnit: "percent",
      crosshairGap: 1,
      fontColor: [0.75, 0.78, 0.82, 1],
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isNearestInterpolation: false,
      atlasOutline: 1,
      dragAndDropEnabled: false,
      dragMode: DRAG_MODE.windowing,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      tileMargin: 2,
      loadingText: "",
      logLevel: "error",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
    })
    this.niivue.onLocationChange = (place) => onPlace(this.describe(place))
    this.niivue.onIntensityChange = (image) => this.onWindow?.(image.cal_min, image.cal_max)
  }

  async start() {
    await this.niivue.attachToCanvas(this.canvas)
    // NiiVue has keys of its own; the page's are the only ones.
    this.canvas.addEventListener("keydown", (event) => event.stopImmediatePropagation(), true)
    const gl = this.niivue.gl
    const named = gl.getExtension("WEBGL_debug_renderer_info")?.UNMASKED_RENDERER_WEBGL ?? gl.RENDERER
    this.isSoftware = /swiftshader|llvmpipe|software|basic render/i.test(gl.getParameter(named))
    this.setView("all")
  }

  /** Show another scan without anything over it. */
  async showScan(buffer, window, axes) {
    const image = await NVImage.loadFromUrl({
      url: buffer, name: "scan.nii", colormap: "gray", cal_min: window.low, cal_max: window.high,
    })
    this.clear()
    this.voxels = image.dimsRAS[1] * image.dimsRAS[2] * image.dimsRAS[3]
    this.axes = axes
    const niivue = this.niivue
    niivue.volumes = [image]
    niivue.overlays = []
    niivue.scene.pan2Dxyzmm = [0, 0, 0, 1]
    this.chooseTiles()
    niivue.setVolume(image, 0)
    this.finish()
  }

  clear() {
    this.layers.clear()
    this.niivue.volumes = []
    this.niivue.overlays = []
    this.niivue.back = null
    this.niivue.drawScene()
  }

  has(name) {
    return this.layers.has(name)
  }

  /** Keep a label map to be shown by `overlay`. */
  async addLabels(name, buffer, isOutline) {
    const image = await NVImage.loadFromUrl({ url: buffer, name: `${name}.nii`, cal_min: 0, cal_max: 255 })
    if (isOutline) image.hdr.intent_code = LABEL_INTENT
    this.layers.set(name, { image, raw: image.img })
  }

  /** Show label maps: [{name, colours: [[r, g, b], ...], hidden: Set of places, opacity}], the lowest first. */
  overlay(wanted) {
    const niivue = this.niivue
    const images = wanted.filter(({ name }) => this.layers.has(name)).map(({ name, colours, hidden, opacity }) => {
      const { image, raw } = this.layers.get(name)
      image.img = hidden?.size ? without(raw, hidden) : raw
      image.setColormapLabel(colourTable(colours))
      image._opacity = opacity // the setter would draw everything again
      return image
    })
    niivue.volumes = [niivue.volumes[0], ...images]
    niivue.overlays = images
    if (images.length) {
      images.forEach((image, place) => niivue.refreshLayers(image, place + 1))
    } else {
      niivue.refreshLayers(niivue.volumes[0], 0) // tells the shaders that there are none
    }
    this.finish()
  }

  /** Set what is black and what is white. */
  setWindow(low, high, { now = false } = {}) {
    const image = this.niivue.volumes[0]
    if (!image) return
    image.cal_min = low
    image.cal_max = high
    clearTimeout(this.waiting)
    const apply = () => {
      this.niivue.refreshLayers(image, 0)
      this.finish()
    }
    if (now || this.voxels < HEAVY) apply()
    else this.waiting = setTimeout(apply, REST)
  }

  get window() {
    const image = this.niivue.volumes[0]
    return image ? [image.cal_min, image.cal_max] : [0, 1]
  }

  setView(name) {
    this.view = name
    this.chooseTiles()
    this.niivue.setSliceType(VIEWS[name].type)
  }

  chooseTiles() {
    const isSlow = this.isSoftware && this.voxels > SLOW
    this.niivue.opts.multiplanarShowRender = (!isSlow && VIEWS[this.view].render) || SHOW_RENDER.NEVER
  }

  /** In 3D the labels alone, where there are any: the body would hide them. */
  finish() {
    const { gl, renderShader, overlays } = this.niivue
    renderShader.use(gl)
    gl.uniform1f(renderShader.uniforms.backOpacity, overlays.length ? 0 : 1)
    this.niivue.drawScene()
    this.drawn = (this.drawn ?? 0) + 1
  }

  goTo(mm) {
    const niivue = this.niivue
    if (!niivue.volumes.length) return
    niivue.scene.crosshairPos = niivue.mm2frac(mm)
    niivue.createOnLocationChange()
    niivue.drawScene()
  }

  /** Go through the slices of a plane: 0 sagittal, 1 coronal, 2 axial. */
  scroll(plane, slices) {
    const move = [0, 0, 0]
    move[plane] = slices
    this.niivue.moveCrosshairInVox(...move)
  }

  describe({ mm, values }) {
    const labels = {}
    for (const [name, { image }] of this.layers) {
      labels[name] = image.getValue(...image.mm2vox([...mm].slice(0, 3)))
    }
    return { mm: [...mm].slice(0, 3), value: values.length ? values[0].value : NaN, labels }
  }
}

function without(raw, hidden) {
  const table = Uint8Array.from({ length: 256 }, (_, value) => (hidden.has(value) ? 0 : value))
  return raw.map((value) => table[value])
}

function colourTable(colours) {
  const all = [[0, 0, 0], ...colours]
  return {
    R: all.map((c) => c[0]), G: all.map((c) => c[1]), B: all.map((c) => c[2]),
    A: all.map((_, place) => (place ? 255 : 0)), I: all.map((_, place) => place),
    labels: all.map((_, place) => String(place)),
  }
}
