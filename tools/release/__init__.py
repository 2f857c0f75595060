"""Makes what a release consists of: the image, its bill of materials, the chart, manifests and
checksums. Publishes nothing.

`rootfs` runs inside the image's build. From the bottom up: `archive` reads an image, `bom` lists
what is in one, `checks` says whether a source tree is fit for release, `artifacts` builds the
files, and `__main__` is the command line.
"""
