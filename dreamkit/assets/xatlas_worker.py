"""Run as a program by `unwrap.py`: read a mesh from one .npz, write its atlas to another."""

import sys

import numpy as np


def main(asked: str, answer: str) -> None:
    import xatlas

    with np.load(asked) as mesh:
        vertices, faces, size, padding = (mesh[k] for k in ("vertices", "faces", "size", "padding"))
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding = int(size), int(padding)
    atlas.generate(xatlas.ChartOptions(), pack)
    origin, indices, uv = atlas[0]
    np.savez(answer, origin=origin, faces=indices, uv=uv, charts=atlas.chart_count)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
