"""A local viewer: scans with their label maps in a browser, served to this machine alone."""

from misfm.viewer.cases import Collection, Image, ViewedCase
from misfm.viewer.server import ViewerServer
from misfm.viewer.session import Session

__all__ = ["Collection", "Image", "Session", "ViewedCase", "ViewerServer"]
