"""Arguments of the command line that fit no configuration, told with the nearest name that there is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.utils import get_object
from omegaconf import OmegaConf

from lightning_sgdinf.studies.suggestion import suggestion
from lightning_sgdinf.tasks.validation import OF_HYDRA, TARGET, arguments_of

_OPTION_OF_A_FOLDER = re.compile(r"(?:--config-dir|-cd)(?:=(.*))?")


def explained(error: HydraException, arguments: Sequence[str], conf_dir: str) -> str:
    """Return what is wrong with the arguments of the command line, with the nearest name that there is.

    Args:
        error: Of composing the configuration.
        arguments: Of the command line.
        conf_dir: Absolute path of the command's own configuration files.
    """
    if isinstance(error, OverrideParseException):
        return f"{error.override}: expected key=value; quote what has blanks, commas or brackets"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [option.removesuffix(".yaml") for option in error.options]
        return f"{group}={name}: no such file{suggestion(name, options)} Known: {', '.join(options)}."
    unknown = re.match(r"Could not override '([^']+)'\.\nTo append", str(error))
    if unknown is None or not isinstance(error, ConfigCompositionException):
        return str(error)
    key = unknown[1]
    others = [argument for argument in arguments if argument.split("=", 1)[0] != key]
    given = next((argument for argument in arguments if argument not in others), f"{key}=...")
    known = _known_keys(others, conf_dir)
    if key in known:
        return f"{key}: it is in none of the configuration's files, only in what they name; write +{given} to set it"
    group, _, name = key.rpartition(".")
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == group]
    if group in known or not group:
        near = suggestion(name, beside)
    else:
        near, beside = suggestion(key, known), []
    return f"{key}: no such key{near}" + (f" Known{f' in {group}' * bool(group)}: {', '.join(beside)}." * bool(beside))


def _known_keys(arguments: Sequence[str], conf_dir: str) -> list[str]:
    """Return the keys of the configuration that the choices of files on a command line lead to, and the arguments of
    the constructors that it names; nothing if these do not compose either."""
    folders = [folder for folder in map(_folder_after, arguments, [*arguments[1:], ""]) if folder]
    choices = [f"{a.split('=', 1)[0]}={a.split('=', 1)[1].split(',')[0]}" for a in arguments if _is_choice(a)]
    paths = [f"hydra.searchpath=[{','.join(f'file://{Path(f).absolute()}' for f in folders)}]"] if folders else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(conf_dir, version_base="1.3"):
            config = OmegaConf.to_container(compose("config", overrides=[*choices, *paths]), resolve=False)
    except Exception:  # it is a further mistake of the same command line
        return []
    return list(_keys(config))


def _is_choice(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return bool(equals) and not key.startswith("-") and "." not in key.partition("@")[0]


def _folder_after(argument: str, following: str) -> str | None:
    option = _OPTION_OF_A_FOLDER.fullmatch(argument)
    return None if option is None else option[1] or following


def _keys(node: Any, where: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return []
    keys = [str(key) for key in node if key not in OF_HYDRA]
    if TARGET in node:
        with suppress(Exception):  # whatever importing a third-party module raises; the job says it
            keys += [name for name in arguments_of(get_object(node[TARGET])) if name not in keys]
    return [
        full
        for key in keys
        for full in (f"{where}.{key}" if where else key, *_keys(node.get(key), f"{where}.{key}" if where else key))
    ]
