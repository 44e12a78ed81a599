"""Other formats."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.interop.hf_export import export_hf
    from upalm.interop.hf_import import import_hf
    from upalm.interop.palm_rlhf import import_palm
