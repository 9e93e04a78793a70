"""Lower packages know nothing of higher ones, and what is imported is declared."""

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A package imports only from the lines above its own.
ORDER = [
    {"errors", "ranges"},
    {"arguments", "commands", "conf", "overrides", "progress", "seeds", "threads"},
    {"ranks", "processes"},
    {"artefacts", "records"},
    {"digests"},
    {"space"},
    {"llm", "text"},
    {"pruning", "evaluation"},
    {"labels", "recovery"},
    {"predictor"},
    {"agents"},
    {"policy_search"},
    {"export", "report"},
    {"plan"},
    {"policy_file"},
    {"runtime"},
    {"server"},
    {"stages"},
    {"cli"},
    {"api"},
]
# Largest number of lines of each package; "modules" are those of no package.
LINES = {
    "agents": 1107,
    "cli": 694,
    "conf": 174,
    "evaluation": 498,
    "export": 2041,
    "labels": 1026,
    "llm": 2222,
    "modules": 1607,
    "policy_search": 1221,
    "predictor": 2257,
    "pruning": 4451,
    "records": 478,
    "recovery": 1240,
    "report": 1300,
    "runtime": 639,
    "server": 1058,
    "space": 706,
    "stages": 2250,
    "text": 911,
}
CAMEL_CASE = re.compile(r"_?[A-Z]+[a-z]\w*")
RANK = {package: rank for rank, packages in enumerate(ORDER) for package in packages}
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "ppf").rglob("*.py"))
IN_PACKAGES = [p for p in FILES if p.parts[1] not in ("__init__.py", "conf")]


def package_of(module: str) -> str:
    return module.split(".")[1]


def imported(source: str, package: str) -> Iterator[str]:
    """Modules that a module of `package` imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield from (f"{base}.{a.name}" if _is_package(base) else base for a in node.names)


def _is_package(module: str) -> bool:
    """Names that are imported from a package may be modules themselves."""
    return (ROOT / module.replace(".", "/")).is_dir()


def imports_of(file: Path) -> set[str]:
    source = (ROOT / file).read_text(encoding="utf-8")
    return set(imported(source, ".".join(file.parent.parts)))


def ours(modules: set[str]) -> set[str]:
    return {module for module in modules if module.startswith("ppf.")}


def allowed(package: str, module: str) -> bool:
    other = package_of(module)
    if package == "space":
        return other in ("space", "errors", "ranges")
    if package == "agents" and other == "predictor":
        return module == "ppf.predictor.protocol" or module.startswith("ppf.predictor.protocol.")
    return other == package or RANK[other] < RANK[package]


def test_imports_only_from_lower_packages() -> None:
    wrong = {}
    for file in IN_PACKAGES:
        package = file.with_suffix("").parts[1]
        assert package in RANK, f"give the package {package} a place in ORDER"
        if higher := [module for module in ours(imports_of(file)) if not allowed(package, module)]:
            wrong[str(file)] = higher
    assert not wrong


def test_the_table_lists_every_package_in_order() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.split("| package | content |\n|---|---|\n")[1].split("\n\n")[0]
    listed = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()))
    assert set(listed) == {file.with_suffix("").parts[1] for file in IN_PACKAGES} | {"conf"}
    places = [RANK[package] for package in listed]
    assert places == sorted(places)


def test_no_module_imports_more_than_fifteen_of_ours() -> None:
    many = {file.as_posix(): len(modules_of(file)) for file in FILES}
    assert {name: count for name, count in many.items() if count > 15} == {}


def modules_of(file: Path) -> set[str]:
    """Our modules that a file imports; a package stands for the names that it offers."""
    found = ours(imports_of(file))
    modules = {name for name in found if (ROOT / f"{name.replace('.', '/')}.py").is_file()}
    return {x if x in modules or _is_package(x) else x.rpartition(".")[0] for x in found}


def test_packages_do_not_grow_unnoticed() -> None:
    """Whoever needs more lines raises a number in LINES, and says why."""
    found = Counter[str]()
    for file in FILES:
        place = file.parts[1] if len(file.parts) > 2 else "modules"
        found[place] += len((ROOT / file).read_text(encoding="utf-8").splitlines())
    assert {name: count for name, count in found.items() if count > LINES.get(name, 0)} == {}


def test_no_two_classes_or_type_aliases_share_a_name() -> None:
    sources = ((ROOT / file).read_text(encoding="utf-8") for file in FILES)
    names = Counter(name for source in sources for name in type_names(source))
    assert [name for name, count in names.items() if count > 1] == []


def type_names(source: str) -> Iterator[str]:
    """Names of the classes and of the type aliases at the top of a module."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (target.id for target in targets if isinstance(target, ast.Name))
            yield from (name for name in names if CAMEL_CASE.fullmatch(name))


def test_no_file_is_a_drawer_for_everything() -> None:
    names = {part for file in FILES for part in file.with_suffix("").parts}
    assert not {"utils", "util", "helpers", "misc", "common"} & names


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(r for name in extras if name != "dev" for r in extras[name]),
    ]
    declared = {normal(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in wanted}
    owners = packages_distributions()
    modules = {module.split(".")[0] for file in FILES for module in imports_of(file)}
    foreign = modules - set(sys.stdlib_module_names) - {"ppf"}
    packages = {m: {normal(owner) for owner in owners.get(m, (m,))} for m in foreign}
    missing = {m for m, names in packages.items() if not declared & names}
    assert not missing, f"pyproject.toml does not declare the packages of {missing}"


def normal(name: str) -> str:
    """A distribution's name, normalised as PyPI does."""
    return re.sub(r"[-_.]+", "-", name).lower()
