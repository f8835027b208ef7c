// The page: lists cases, opens one, and turns clicks and keys into calls of the scene.

import { Scene, VIEWS } from "./scene.js"

const MODES = {
  both: { needs: ["prediction", "reference"], help: "Prediction filled, reference as a line." },
  prediction: { needs: ["prediction"], help: "" },
  reference: { needs: ["reference"], help: "" },
  difference: { needs: ["difference"], help: "" },
  none: { needs: [], help: "" },
}
const byId = (id) => document.getElementById(id)
const state = { cases: [], order: [], current: null, mode: null, before: "both", hidden: new Set(), facts: null, labels: null }
const scene = new Scene(byId("canvas"), showPlace)
let opening = new AbortController()

async function start() {
  await scene.start()
  scene.onWindow = showWindow
  listen()
  setView("all")
  await refreshList(true)
  const wanted = state.cases.find((one) => String(one.id) === location.hash.slice(1))
  open(wanted?.id ?? state.order[0])
}

// ---- what the server has -------------------------------------------------------------------------------------

async function get(path, signal) {
  let answer
  try {
    answer = await fetch(path, { signal })
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw new Error("The viewer has ended: start 'misfm view' again.")
  }
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `The server answered ${answer.status}.`)
  return answer
}

const getJson = async (path, signal) => (await get(path, signal)).json()

/** A file as one buffer; `tell` gets the share that is here, where its size is known. */
async function getFile(path, signal, tell) {
  const answer = await get(path, signal)
  const size = answer.headers.get("Content-Encoding") ? 0 : Number(answer.headers.get("Content-Length"))
  if (!size) return answer.arrayBuffer()
  const whole = new Uint8Array(size)
  const reader = answer.body.getReader()
  for (let here = 0; ;) {
    const { done, value } = await reader.read()
    if (done) return whole.buffer
    whole.set(value, here)
    here += value.length
    tell?.(here / size)
  }
}

async function refreshList(isFirst) {
  const found = await getJson("cases.json")
  state.cases = found.cases
  state.notes = found.notes
  if (isFirst) {
    byId("title").textContent = found.title
    document.title = `${found.title} · misfm view`
    byId("list").hidden = found.cases.length === 1
    document.body.classList.toggle("single", found.cases.length === 1)
    if (!found.cases.some((one) => one.dice !== null) && !found.scoring) byId("order").value = "name"
  }
  drawList()
  if (found.scoring) setTimeout(() => refreshList(false).catch(() => {}), 2000)
}

// ---- the list of cases ---------------------------------------------------------------------------------------

function drawList() {
  const wanted = byId("filter").value.toLowerCase()
  const cases = state.cases.filter(({ name }) => name.toLowerCase().includes(wanted))
  if (byId("order").value === "dice") cases.sort((a, b) => (a.dice ?? 2) - (b.dice ?? 2) || a.id - b.id)
  state.order = cases.map(({ id }) => id)
  byId("cases").replaceChildren(...cases.map((one) => {
    const name = element("span", { className: "name", textContent: one.name, title: one.name })
    const button = element("button", { onclick: () => open(one.id) }, name)
    if (one.dice !== null) {
      button.append(element("span", { className: "dice", textContent: one.dice.toFixed(2), title: "Mean Dice" }))
    }
    if (one.id === state.current) button.setAttribute("aria-current", "true")
    return element("li", {}, button)
  }))
  drawPosition()
}

function drawPosition() {
  const one = state.cases.find(({ id }) => id === state.current)
  const place = state.order.indexOf(state.current)
  byId("case").replaceChildren(one?.name ?? "", " ")
  if (one) byId("case").append(element("small", { textContent: place < 0 ? "" : `${place + 1} of ${state.order.length}` }))
  byId("previous").disabled = place === 0
  byId("next").disabled = place === state.order.length - 1
}

function step(by) {
  const place = state.order.indexOf(state.current) + by
  if (place >= 0 && place < state.order.length) open(state.order[place])
}

// ---- one case ------------------------------------------------------------------------------------------------

async function open(id, whole = false) {
  if (id === undefined) return
  opening.abort()
  opening = new AbortController()
  const { signal } = opening
  const began = performance.now()
  Object.assign(state, { current: id, facts: null, labels: null, hidden: new Set(), query: whole ? "?whole" : scene.isSoftware ? "?small" : "" })
  history.replaceState(null, "", `#${id}`)
  drawList()
  byId("cases").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" })
  for (const part of ["fault", "worst", "notes-section", "whole"]) byId(part).hidden = true
  byId("whole-text").textContent = byId("worst-text").textContent = byId("mode-help").textContent = byId("place").textContent = byId("grid").textContent = ""
  document.body.dataset.state = "loading"
  drawLabels()
  try {
    await openScan(id, signal)
    document.body.dataset.state = "scan"
    const one = state.cases.find((other) => other.id === id)
    if (one.has.length) await openLabels(id, one, signal)
    else showNotes([])
    busy(null)
    document.body.dataset.state = "ready"
    document.body.dataset.seconds = ((performance.now() - began) / 1000).toFixed(2)
  } catch (error) {
    if (signal.aborted) return
    busy(null)
    if (document.body.dataset.state === "loading") scene.clear()
    byId("fault").textContent = error.message
    byId("fault").hidden = false
    showNotes([])
    document.body.dataset.state = "fault"
  }
}

async function openScan(id, signal) {
  busy("Reading the scan")
  state.facts = await getJson(`case/${id}/facts${state.query}`, signal)
  const names = state.facts.channels.map(({ name }, place) => element("option", { value: place, textContent: name }))
  byId("channel").replaceChildren(...names)
  byId("channel").hidden = names.length < 2
  const shape = state.facts.shape.join(" × "), spacing = state.facts.spacing.map((mm) => +mm.toFixed(2)).join(" × ")
  byId("grid").textContent = `${shape} voxels, ${spacing} mm, ${state.facts.orientation}`
  const isThinned = state.facts.step > 1
  byId("whole").hidden = !isThinned
  byId("whole-text").textContent = isThinned ? `A large scan: one voxel of ${state.facts.step} is drawn along its finest axes.` : ""
  await showChannel(0, signal)
  scene.goTo(state.facts.centre)
}

async function showChannel(place, signal) {
  const buffer = await getFile(`case/${state.current}/image-${place}.nii${state.query}`, signal, (share) => busy("Loading the scan", share))
  const { windows } = state.facts.channels[place]
  const options = windows.map(({ name }, number) => element("option", { value: number, textContent: name }))
  byId("window").replaceChildren(...options, element("option", { value: -1, textContent: "Own", hidden: true }))
  busy("Drawing")
  await nextFrame()
  signal.throwIfAborted()
  await scene.showScan(buffer, windows[0])
  showWindow(windows[0].low, windows[0].high)
}

async function openLabels(id, one, signal) {
  busy(one.is_made ? "Predicting: the first look at a case takes a while" : "Reading label maps")
  const labels = await getJson(`case/${id}/labels`, signal)
  for (const name of labels.has) {
    const buffer = await getFile(`case/${id}/${name}.nii${state.query}`, signal)
    signal.throwIfAborted()
    await scene.addLabels(name, buffer, name === "outline")
  }
  state.labels = labels
  Object.assign(one, { dice: labels.dice ?? one.dice, is_made: false })
  drawList()
  showNotes(labels.faults)
  showWorst(labels)
  const can = (mode) => mode && MODES[mode].needs.every((name) => labels.has.includes(name))
  setMode([state.mode, "both", "prediction", "reference", "none"].find(can))
  goToWorst()
}

function showNotes(faults) {
  const notes = [...(state.notes ?? []), ...(state.facts?.notes ?? [])]
  byId("notes").replaceChildren(
    ...faults.map((text) => element("li", { className: "fault", textContent: text })),
    ...notes.map((text) => element("li", { textContent: text })),
  )
  byId("notes-section").hidden = !(faults.length + notes.length)
}

function showWorst(labels) {
  byId("worst").hidden = !labels.focus
  byId("worst").firstChild.textContent = labels.worst ? "Worst slice " : "Slice with most labels "
  byId("worst-text").textContent = labels.worst ? labels.worst.text : labels.worst === null ? "Nothing differs." : ""
}

function goToWorst() {
  const place = state.labels?.worst?.mm ?? state.labels?.focus
  if (place) scene.goTo(place)
}

// ---- labels --------------------------------------------------------------------------------------------------

function setMode(mode) {
  const has = state.labels?.has ?? []
  if (!mode || !MODES[mode].needs.every((name) => has.includes(name))) return
  if (mode !== "none") state.before = mode
  state.mode = mode
  byId("mode-help").textContent = MODES[mode].help
  drawLabels()
  drawOverlay()
}

function drawOverlay() {
  const colours = state.labels.labels.map(({ colour }) => rgb(colour))
  const opacity = Number(byId("opacity").value)
  const layer = (name, strength) => ({ name, colours, hidden: state.hidden, opacity: strength })
  const different = { name: "difference", colours: (state.labels.differences ?? []).map(({ colour }) => rgb(colour)), opacity: Math.max(opacity, 0.8) }
  scene.overlay({
    both: [layer("prediction", opacity), layer("outline", 1)],
    prediction: [layer("prediction", opacity)],
    reference: [layer("reference", opacity)],
    difference: [different],
    none: [],
  }[state.mode])
}

function drawLabels() {
  const labels = state.labels
  byId("overlay-section").hidden = !state.cases.find(({ id }) => id === state.current)?.has.length
  for (const button of byId("modes").children) {
    const { mode } = button.dataset
    button.disabled = !MODES[mode].needs.every((name) => labels?.has.includes(name))
    button.setAttribute("role", "radio")
    button.setAttribute("aria-checked", String(!!labels && mode === state.mode))
  }
  const isDifference = state.mode === "difference"
  const columns = isDifference ? [["ml", "ml"]] : [["reference_ml", "ref. ml"], ["prediction_ml", "pred. ml"], ["dice", "Dice"]]
  const rows = (isDifference ? labels?.differences : labels?.labels) ?? []
  const shown = columns.filter(([key]) => rows.some((row) => key in row))
  const head = element("tr", {}, ...["", ...shown.map(([, title]) => title)].map((title) => element("th", { textContent: title })))
  byId("labels").tHead.replaceChildren(...(rows.length ? [head] : []))
  byId("labels").tBodies[0].replaceChildren(...rows.map((row, place) => {
    const cells = shown.map(([key]) => element("td", { textContent: number(row[key], key === "dice" ? 2 : undefined) }))
    return element("tr", {}, element("td", {}, nameOf(row, place + 1, isDifference)), ...cells)
  }))
}

function nameOf(row, place, isFixed) {
  const swatch = element("button", { className: "swatch", disabled: isFixed, title: "Show or hide" })
  swatch.style.setProperty("--colour", row.colour)
  swatch.setAttribute("aria-pressed", String(!state.hidden.has(place) || isFixed))
  swatch.setAttribute("aria-label", `Show ${row.name}`)
  swatch.onclick = () => {
    if (!state.hidden.delete(place)) state.hidden.add(place)
    drawLabels()
    drawOverlay()
  }
  const jump = element("button", { className: "jump", textContent: row.name, title: row.centre ? `Go to ${row.name}` : row.name })
  jump.onclick = () => row.centre && scene.goTo(row.centre)
  return element("span", {}, swatch, jump)
}

// ---- brightness, views, place --------------------------------------------------------------------------------

function showWindow(low, high) {
  const { windows } = state.facts.channels[Number(byId("channel").value || 0)]
  const near = (a, b) => Math.abs(a - b) < 1e-6 * (1 + Math.abs(b))
  byId("window").value = windows.findIndex((one) => near(one.low, low) && near(one.high, high))
  const digits = high - low > 20 ? 0 : 3
  byId("low").value = low.toFixed(digits)
  byId("high").value = high.toFixed(digits)
}

function chooseWindow(place) {
  const window = state.facts?.channels[Number(byId("channel").value || 0)].windows[place]
  if (!window) return
  scene.setWindow(window.low, window.high, { now: true })
  showWindow(window.low, window.high)
}

function nextWindow() {
  const { length } = byId("window").options
  if (length) chooseWindow((byId("window").selectedIndex + 1) % (length - 1))
}

function typedWindow() {
  const low = Number(byId("low").value), high = Number(byId("high").value)
  if (high > low) scene.setWindow(low, high)
}

async function changeChannel() {
  const { signal } = opening
  try {
    await showChannel(Number(byId("channel").value), signal)
    busy(null)
    if (state.labels) await openLabels(state.current, state.cases.find(({ id }) => id === state.current), signal)
    busy(null)
  } catch (error) {
    if (!signal.aborted) byId("fault").textContent = error.message
  }
}

function setView(view) {
  scene.setView(view)
  for (const button of byId("views").children) {
    button.setAttribute("role", "radio")
    button.setAttribute("aria-checked", String(button.dataset.view === view))
  }
}

function showPlace({ mm, value, labels }) {
  const name = (place) => (place ? state.labels?.labels[place - 1]?.name ?? "" : "–")
  const said = ["reference", "prediction"].filter((which) => which in labels).map((which) => `${which}: ${name(labels[which])}`)
  const unit = state.facts?.channels[Number(byId("channel").value || 0)].kind === "ct" ? " HU" : ""
  const [right, front, up] = mm.map((one) => one.toFixed(1))
  byId("place").textContent = [`R ${right} A ${front} S ${up} mm`, `${number(value)}${unit}`, ...said].join("  ·  ")
}

// ---- keys and clicks -----------------------------------------------------------------------------------------

const KEYS = {
  n: () => step(1), ArrowRight: () => step(1), p: () => step(-1), ArrowLeft: () => step(-1),
  ArrowUp: (many) => scene.scroll(plane(), many), ArrowDown: (many) => scene.scroll(plane(), -many),
  w: goToWorst, b: nextWindow, " ": () => setMode(state.mode === "none" ? state.before : "none"),
  a: () => setView("all"), s: () => setView("axial"), d: () => setView("coronal"), f: () => setView("sagittal"), g: () => setView("surface"),
  "?": () => byId("help").showModal(), r: () => byId("whole").hidden || open(state.current, true),
}
Object.keys(MODES).forEach((mode, place) => { KEYS[place + 1] = () => setMode(mode) })

const plane = () => ({ coronal: 1, sagittal: 0 })[scene.view] ?? 2

function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || event.target.matches("input, select")) return
    const act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()]
    if (!act || (event.key === " " && event.target.matches("button"))) return
    event.preventDefault()
    act(event.shiftKey ? 10 : 1)
  })
  byId("previous").onclick = () => step(-1)
  byId("next").onclick = () => step(1)
  byId("help-button").onclick = () => byId("help").showModal()
  byId("worst").onclick = goToWorst
  byId("whole").onclick = KEYS.r
  byId("filter").oninput = byId("order").onchange = drawList
  byId("opacity").oninput = () => state.labels && drawOverlay()
  byId("window").onchange = () => chooseWindow(Number(byId("window").value))
  byId("channel").onchange = changeChannel
  byId("low").onchange = byId("high").onchange = typedWindow
  byId("views").onclick = ({ target }) => target.dataset.view in VIEWS && setView(target.dataset.view)
  byId("modes").onclick = ({ target }) => target.dataset.mode && setMode(target.dataset.mode)
}

// ---- small things --------------------------------------------------------------------------------------------

function busy(text, share) {
  byId("busy").hidden = text === null
  byId("busy").firstElementChild.textContent = text ?? ""
  if (share === undefined) byId("busy").lastElementChild.removeAttribute("value")
  else byId("busy").lastElementChild.value = share
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children)
  return made
}

function number(value, digits) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–"
  if (digits !== undefined) return value.toFixed(digits)
  return Math.abs(value) >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toPrecision(3)
}

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))
const nextFrame = () => new Promise((resolve) => setTimeout(resolve, 20))

start().catch((error) => {
  busy(null)
  byId("fault").textContent = error.message.includes("WebGL") ? "This browser has no WebGL 2: use another, or one with hardware acceleration." : error.message
  byId("fault").hidden = false
  document.body.dataset.state = "fault"
})
