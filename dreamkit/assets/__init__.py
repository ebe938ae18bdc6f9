"""Assets: density and colour fields become files that people can use.

In order: `extract` (grid, level, marching cubes), `clean` (components, smoothing, decimation), `unwrap` (texture
coordinates), `bake` (texture), `files` (GLB, OBJ, PLY), `compare` (read back, re-rendered, measured).
"""
