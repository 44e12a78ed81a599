"""Devices and processes: meshes, sharding, multi-process runs, chips."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.distributed.processes import ProcessConfig
    from upalm.distributed.sharding import MeshConfig, make_mesh
