"""Assets: density and colour fields become files that people can use.

In order: `extract` (grid, level, marching cubes), `clean` (components, smoothing, decimation), `unwrap` (texture
coordinates), `bake` (texture), `files` (GLB, glTF, OBJ, PLY, STL, USDZ: the door to a file for each format). `splats`
reads and writes Gaussians.
"""
