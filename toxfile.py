"""Makes `tox -l` list every environment, not only those that a plain `tox` runs."""

from tox.plugin import impl


@impl
def tox_add_core_config(core_conf, state):
    options = state.conf.options
    options.list_envs_all = getattr(options, "list_envs_all", False) or getattr(options, "list_envs", False)
