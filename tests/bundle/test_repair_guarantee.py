"""What parity promises, at its limits: stripe by stripe, and on files of real sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import damage_block, damage_packet, geometry_in, overwrite, restores
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import add, noise, writer

from tersor.bundle import protect as protect_module
from tersor.bundle.errors import BundleParityError
from tersor.bundle.manifest import Parity
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.places import places
from tersor.bundle.protect import protect
from tersor.bundle.reader import BundleReader
from tersor.bundle.repair import repair

# --- the guarantee ----------------------------------------------------------------------------

STRIPES = [(3, 1), (5, 2), (4, 3), (2, 4), (9, 1), (30, 2), (1, 1), (40, 7)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, ParityGeometry]]:
    """Bundles of 30 blocks in stripes of all kinds."""
    folder = tmp_path_factory.mktemp("small")
    result = []
    with pytest.MonkeyPatch.context() as patch:
        for number, (data_blocks, parity_blocks) in enumerate(STRIPES):

            def plan(
                data_end: int, _: float, k: int = data_blocks, m: int = parity_blocks
            ) -> Parity:
                offset = -(-data_end // 4096) * 4096
                return Parity(offset=offset, block_bytes=4096, data_blocks=k, parity_blocks=m)

            patch.setattr(protect_module, "plan_parity", plan)
            path = folder / f"{number}.tersor"
            with writer(path) as target:
                for layer in range(3):
                    add(target, f"t{layer}", "u8", noise(36_001, seed=layer))
                target.commit()
            protect(path, 0.05)
            geometry = geometry_in(path)
            assert (geometry.data_blocks, geometry.parity_blocks) == (data_blocks, parity_blocks)
            assert geometry.blocks >= 28
            result.append((path.read_bytes(), geometry))
    return result


def damage_of_a_stripe(
    data: st.DataObject, geometry: ParityGeometry, stripe: int, count: int
) -> Callable[[bytearray], None]:
    """Draws `count` blocks and packets of a stripe, and how to damage them."""
    units = [("block", block) for block in range(stripe, geometry.blocks, geometry.stripes)]
    units += [("packet", place) for place in range(stripe, geometry.packets, geometry.stripes)]
    chosen = data.draw(st.permutations(units))[:count]
    at = data.draw(st.integers(0, 5000))

    def apply(target: bytearray) -> None:
        for kind, number in chosen:
            (damage_block if kind == "block" else damage_packet)(target, geometry, number, at)

    return apply


@given(data=st.data())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_stripes_at_their_capacity_are_restored(
    tmp_path_factory: pytest.TempPathFactory,
    small: list[tuple[bytes, ParityGeometry]],
    data: st.DataObject,
) -> None:
    whole, geometry = data.draw(st.sampled_from(small))
    damaged = bytearray(whole)
    for stripe in range(geometry.stripes):
        count = data.draw(st.sampled_from([0, *[geometry.parity_blocks] * 3]))
        damage_of_a_stripe(data, geometry, stripe, count)(damaged)
    path = tmp_path_factory.getbasetemp() / "guarantee.tersor"
    path.write_bytes(damaged)
    repair(path)
    assert path.read_bytes() == whole


@given(data=st.data())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_one_beyond_the_capacity_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    small: list[tuple[bytes, ParityGeometry]],
    data: st.DataObject,
) -> None:
    whole, geometry = data.draw(st.sampled_from(small))
    damaged = bytearray(whole)
    stripe = data.draw(st.integers(0, geometry.stripes - 1))
    damage_of_a_stripe(data, geometry, stripe, geometry.parity_blocks + 1)(damaged)
    path = tmp_path_factory.getbasetemp() / "beyond.tersor"
    path.write_bytes(damaged)
    with pytest.raises(BundleParityError):
        repair(path)
    assert path.read_bytes() == damaged


# --- real sizes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory, pico_dir: Path) -> bytes:
    """The example model, lossless, with parity of 5 %."""
    from tersor.converters.pipeline import convert
    from tersor.converters.recipe import load_recipe

    path = tmp_path_factory.mktemp("pico") / "pico.tersor"
    convert(pico_dir, path, recipe=load_recipe("lossless"), parity=0.05)
    return path.read_bytes()


@pytest.mark.parametrize("bursts", [1, 2, 3, 4, 6])
def test_bursts_over_3_percent_of_a_model(tmp_path: Path, pico: bytes, bursts: int) -> None:
    data = bytearray(pico)
    size = 3 * len(data) // 100 // bursts
    starts = noise(8 * bursts, seed=bursts).view("<u8") % np.uint64(len(data) - size)
    for start in starts.tolist():
        data[start : start + size] = noise(size, seed=start).tobytes()
    restores(tmp_path / "x.tersor", pico, data)


def test_scattered_damage_to_1_percent_of_chunks(tmp_path: Path, pico: bytes) -> None:
    path = tmp_path / "x.tersor"
    path.write_bytes(pico)
    with BundleReader.open(path) as reader:
        chunks = [place.chunk for place in places(reader.manifest)]
    order = np.argsort(noise(8 * len(chunks), seed=5).view("<u8"), kind="stable")
    data = bytearray(pico)
    for number in order[: max(2, len(chunks) // 100)].tolist():
        chunk = chunks[number]
        data[chunk.offset + chunk.stored_bytes // 2] ^= 1
    restores(path, pico, data)


@pytest.mark.parametrize("size", [1, 5000, 60_000, 150_000, 340_000, 1_000_000])
@pytest.mark.parametrize("where", ["start", "middle", "section", "end"])
def test_a_burst_over_3_percent_of_files_of_any_size(tmp_path: Path, size: int, where: str) -> None:
    path = tmp_path / "x.tersor"
    with writer(path, parity=0.05) as target:
        add(target, "w", "u8", noise(size))
        target.commit()
    whole, geometry = path.read_bytes(), geometry_in(path)
    length = 3 * len(whole) // 100
    starts = {
        "start": 0,
        "middle": 8192 - length // 2,
        "section": geometry.offset - length // 2,
        "end": len(whole) - length,
    }
    data = bytearray(whole)
    overwrite(data, starts[where], length)
    restores(path, whole, data)
