"""The additional layer store: PuzzleFS images for podman and CRI-O, which have no snapshotter API.

containers/storage looks for a layer in a directory tree before it downloads it (``drivers/overlay/overlay.go``,
``getAdditionalLayerPath``)::

    <mountpoint>/<base64 of the image's reference>/<key>/diff    the layer, as a lower directory of overlayfs
                                                       /info    what containers/storage shall record of it
                                                       /blob    the blob as the registry has it
                                                       /use     created for every user; the answer is always ENOENT

and removes the directory of the key for every user that is gone (ENOENT too). The key is the layer's blob digest (podman up to
5.0) or its TOC digest (from 5.1 on).

* `info`: the documents and digests that containers/storage is told. Pure.
* `images`: which layers a reference stands for.
* `state`: what is remembered of them, over restarts and without the registry.
* `turns`: what threads are shown of a layer that an image has several times.
* `tree`: the directory tree itself, free of FUSE (`mount.virtual` serves it).
"""
