"""Renaming tensors to another tool's names: pairs of module names, applied to every key below a module."""

from collections.abc import Iterable, Mapping

from refimpl.errors import InputError


def renamed_keys(keys: Iterable[str], modules: Mapping[str, str], source: str) -> dict[str, str]:
    """New name of each key: its longest module prefix that is in `modules` is replaced.

    modules  old module name → new module name, without a final dot
    source   what the keys come from, for messages
    Raises InputError listing every key that no module covers, or when two keys get the same name.
    """
    renamed: dict[str, str] = {}
    unknown = []
    for key in keys:
        module = key
        while module and module not in modules:
            module = module.rpartition(".")[0]
        if module:
            renamed[key] = modules[module] + key[len(module) :]
        else:
            unknown.append(key)
    if unknown:
        listing = "\n  ".join(unknown)
        raise InputError(
            f"{source}: {len(unknown)} tensors have no place in this architecture:\n  {listing}\n"
            "Use the files of one SDXL model, or the configuration that belongs to them."
        )
    if len(set(renamed.values())) < len(renamed):
        old_name: dict[str, str] = {}
        twins = [(key, old_name.setdefault(name, key), name) for key, name in renamed.items()]
        first, second, name = next(twin for twin in twins if twin[0] != twin[1])
        raise InputError(f"{source}: {second} and {first} are the same tensor, {name}; remove one of them")
    return renamed


def inverted(modules: Mapping[str, str]) -> dict[str, str]:
    """New module name → old module name, for a one-to-one mapping."""
    return {theirs: ours for ours, theirs in modules.items()}
