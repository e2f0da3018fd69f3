"""Container images as files: their documents, their blobs, and the archives that carry them.

`documents`, `media_types`, `platform`, `reference`, `descriptor`, `config` and `manifest` read and make what images say
of themselves; `blobs` keeps their bytes. `sources` opens what images come in (`files`, `oci_layout`, `docker_archive`,
`selection` behind it), `destinations` writes what they leave in (`sinks` behind it).
"""
