"""The image definition: held against the tree, and its build steps repeated by hand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path, PurePosixPath

import grpc
import pytest
from deploy_files import DEPLOY, ROOT, Instruction, Stage, parse_dockerfile
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tersor.runtime.config import ServerConfig

DOCKERFILE = DEPLOY / "container" / "Dockerfile"
HEALTHCHECK = DEPLOY / "container" / "healthcheck.py"
KEYWORDS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "RUN",
    "STOPSIGNAL", "USER", "WORKDIR",
}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def stages() -> dict[str, Stage]:
    return {stage.name: stage for stage in parse_dockerfile(DOCKERFILE)[1]}


def included(path: PurePosixPath) -> bool:
    """Whether the ignore file lets a path of the tree into the build; the last match decides."""
    kept = True
    for line in (DOCKERFILE.with_name("Dockerfile.dockerignore")).read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keeps, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        if pattern.startswith("**/"):
            matches = any(PurePosixPath(part).match(pattern[3:]) for part in path.parts)
        else:
            matches = any(p.match(pattern) and len(p.parts) == len(PurePosixPath(pattern).parts)
                          for p in (path, *path.parents))  # fmt: skip
        if matches:
            kept = keeps
    return kept


def copy_context(instruction: Instruction, target: Path) -> None:
    """Does what a `COPY` from the build context does, into `target` as the working folder."""
    *sources, destination = instruction.words
    for source in sources:
        origin = ROOT / source
        files = [origin] if origin.is_file() else [p for p in origin.rglob("*") if p.is_file()]
        assert files, f"COPY names {source}, which does not exist"
        into = target / destination / origin.name if origin.is_file() else target / destination
        for file in files:
            if not included(PurePosixPath(file.relative_to(ROOT).as_posix())):
                continue
            place = into if origin.is_file() else into / file.relative_to(origin)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


class TestInstructions:
    def test_known_keywords_only_and_every_stage_named(self) -> None:
        head, found = parse_dockerfile(DOCKERFILE)
        assert {item.keyword for item in head} == {"ARG"}
        assert [stage.name for stage in found] == ["wheel", "environment", "runtime", "cuda", "cpu"]
        for stage in found:
            assert {item.keyword for item in stage.instructions} <= KEYWORDS

    def test_bases_are_an_argument_or_an_earlier_stage_and_name_no_host(self) -> None:
        head, found = parse_dockerfile(DOCKERFILE)
        arguments = dict(item.text.split("=", 1) for item in head)
        earlier: list[str] = []
        for stage in found:
            assert stage.base == "${PYTHON_IMAGE}" or stage.base in earlier
            earlier.append(stage.name)
        repository, _, tag = arguments["PYTHON_IMAGE"].partition(":")
        assert repository == "python"
        assert tag.endswith("-slim-bookworm")
        assert f">={tag.partition('-')[0]}" == PROJECT["requires-python"]

    def test_no_file_of_the_image_names_an_index(self) -> None:
        for path in (DEPLOY / "container").iterdir():
            if path.is_file():
                assert not re.search(r"https?://", path.read_text(encoding="utf-8")), path

    def test_every_source_of_a_copy_exists_and_reaches_the_builder(self) -> None:
        copied = 0
        for stage in stages().values():
            for instruction in stage.all("COPY"):
                if "from" in instruction.flags:
                    assert instruction.flags["from"] in stages()
                    continue
                for source in instruction.words[:-1]:
                    assert (ROOT / source).exists(), source
                    assert included(PurePosixPath(source.rstrip("/"))), source
                    copied += 1
        assert copied >= 10

    def test_every_package_folder_is_copied(self) -> None:
        packages = {path.parent.name for path in ROOT.glob("*/py.typed")}
        sources = {
            source.rstrip("/")
            for item in stages()["wheel"].all("COPY")
            for source in item.words[:-1]
        }
        assert packages <= sources

    @pytest.mark.parametrize(
        "path",
        [
            ".env",
            ".git/config",
            ".venv/bin/python",
            "deploy/render.py",
            "examples/pico/model.safetensors",
            "kernels/__pycache__/layout.cpython-311.pyc",
            "models/secret.tersor",
            "tests/conftest.py",
        ],
    )
    def test_the_ignore_file_keeps_out(self, path: str) -> None:
        assert not included(PurePosixPath(path))

    @pytest.mark.parametrize("target", ["cpu", "cuda"])
    def test_the_images_run_unprivileged_and_serve_on_the_default_ports(self, target: str) -> None:
        runtime, last = stages()["runtime"], stages()[target]
        user = (last.all("USER") or runtime.all("USER"))[-1].text
        assert user == "10001:10001"
        assert runtime.last("STOPSIGNAL").text == "SIGTERM"
        assert runtime.last("ENTRYPOINT").text == '["tersor"]'
        defaults = ServerConfig(models=())
        assert runtime.last("EXPOSE").words == [str(defaults.grpc_port), str(defaults.metrics_port)]
        assert f'"127.0.0.1:{defaults.grpc_port}"' in runtime.last("HEALTHCHECK").text
        command = last.last("CMD").text
        assert f'"--device", "{target}"' in command
        assert f'"--grpc-port", "{defaults.grpc_port}"' in command
        assert f'"--metrics-port", "{defaults.metrics_port}"' in command

    def test_the_cpu_image_is_the_default_and_has_no_compiler(self) -> None:
        assert list(stages())[-1] == "cpu"
        for name in ("runtime", "cpu"):
            assert not any("apt-get" in item.text for item in stages()[name].all("RUN"))

    def test_every_shell_line_parses(self) -> None:
        lines = [item.text for stage in stages().values() for item in stage.all("RUN")]
        assert len(lines) >= 6
        for line in lines:
            subprocess.run(["/bin/sh", "-n", "-c", line], check=True)

    @pytest.mark.parametrize(
        ("index", "expected"), [("", "torch"), ("x:/cpu", "--index-url x:/cpu torch")]
    )
    def test_the_index_of_torch_is_an_argument(self, index: str, expected: str) -> None:
        (line,) = (
            item.text for item in stages()["environment"].all("RUN") if "TORCH_INDEX" in item.text
        )
        options = line[line.index("${TORCH_INDEX_URL") : line.index("&&")]
        shown = subprocess.run(
            ["/bin/sh", "-c", f"echo {options}"],
            env={"TORCH_INDEX_URL": index},
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.strip() == expected

    def test_nothing_for_development_is_installed(self) -> None:
        text = " ".join(item.text for item in stages()["environment"].all("RUN"))
        assert "[" not in text, "an extra is named"
        assert "--editable" not in text
        for command in re.findall(r"pip [^&]* install [^&]*", text):
            assert "--constraint /constraints.txt" in command


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sources as the builder sees them, and the wheel made of them."""
    source = tmp_path_factory.mktemp("source")
    for instruction in stages()["wheel"].all("COPY"):
        copy_context(instruction, source)
    out = tmp_path_factory.mktemp("dist")
    run = stages()["wheel"].last("RUN").text
    assert run == "python -m pip wheel --no-deps --wheel-dir /dist ."
    # The image fetches setuptools into an isolated build; here the installed one serves.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
               "--no-build-isolation", "--wheel-dir", str(out), "."]  # fmt: skip
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


class TestBuildSteps:
    """What the stages `wheel` and `environment` do, without an engine and without a network."""

    def test_the_wheel_holds_every_package_and_data_file(self, built: tuple[Path, Path]) -> None:
        source, wheel = built
        with zipfile.ZipFile(wheel) as archive:
            held = set(archive.namelist())
        kinds = {".json", ".proto", ".py", ".pyi", ".toml", ".typed"}
        wanted = {
            f"tersor/{path.relative_to(source).as_posix()}"
            for marker in source.glob("*/py.typed")
            for path in marker.parent.rglob("*")
            if path.suffix in kinds
        }
        assert len(wanted) > 100
        assert sorted(wanted - held) == []

    def test_the_wheel_holds_nothing_else(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        rooms = {path.parent.name for path in ROOT.glob("*/py.typed")}
        info = f"tersor-{PROJECT['version']}.dist-info"
        for name in names:
            first, second = PurePosixPath(name).parts[:2]
            assert first == info or (first == "tersor" and second in rooms), name
        assert f"{info}/licenses/LICENSE" in names

    def test_the_environment_runs_the_command_from_the_wheel(
        self, wheel: Path, tmp_path: Path
    ) -> None:
        place = tmp_path / "opt"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
        python = place / "bin" / "python"
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet",
                   "--no-deps", "--no-index", str(wheel)]  # fmt: skip
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        # The dependencies are those of this environment; a .pth line adds their folder without its
        # own .pth files, so an editable tersor beside them stays out.
        inside = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        (inside / "site-packages" / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        code = (
            "import pathlib, tersor.cli.main as m, tersor.runtime.config as c;"
            "print(pathlib.Path(m.__file__).parts[-3:], pathlib.Path(c.__file__))"
        )
        shown = subprocess.run(
            [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
        assert str(place) in shown.stdout
        script = place / "bin" / "tersor"
        for arguments in (["--help"], ["serve", "--help"]):
            ran = subprocess.run(
                [script, *arguments], cwd=tmp_path, capture_output=True, check=False
            )
            assert ran.returncode == 0, ran.stderr


class TestHealthcheck:
    @pytest.fixture
    def server(self) -> Iterator[tuple[str, health.HealthServicer]]:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", servicer
        server.stop(None).wait()

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # The proxy must be ignored: with it, every answer would be "unavailable".
        return subprocess.run(
            [sys.executable, HEALTHCHECK, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"http_proxy": "http://127.0.0.1:9", "PATH": ""},
        )

    def test_serving_then_draining(self, server: tuple[str, health.HealthServicer]) -> None:
        address, servicer = server
        done = self.ask(address)
        assert (done.returncode, done.stdout) == (0, f"{address}: SERVING\n")
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        done = self.ask(address)
        assert (done.returncode, done.stdout) == (1, f"{address}: NOT_SERVING\n")
        assert self.ask(address, "unknown.Service").returncode == 1

    def test_nobody_listens(self) -> None:
        done = self.ask("127.0.0.1:9")
        assert done.returncode == 1
        assert "UNAVAILABLE" in done.stderr
        assert "Traceback" not in done.stderr

    def test_wrong_usage(self) -> None:
        assert self.ask().returncode == 2
