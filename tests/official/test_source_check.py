"""A checkout's step with an unknown method is not replaced, even if two iterations show no difference.

Other tests check what the hash of a method depends on, and the table of known hashes.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fastcyclegan.official.patch_model import Options
from fastcyclegan.official.source_check import KNOWN, hash_of
from tests.official.training import (
    ADVERSARIAL,
    BASE,
    MODEL,
    NETWORKS,
    OPTIMIZE,
    POOL,
    SET_INPUT,
    STEP_D,
    Edits,
    assert_ours,
    assert_same,
    checkout,
    train,
)

BACKWARD = "self.backward_G()\n        self.optimizer_G"
CRITERIONS = "self.criterionCycle, self.criterionIdt = torch.nn.L1Loss(), torch.nn.L1Loss()"
LABEL = "        label = (self.real_label"
COUNT, QUERY = "        self.n = getattr(self, 'n', 0) + 1\n", "    def query(self, images):\n"
WRAPPED = """

def counted(method):
    @functools.wraps(method)
    def inner(self, *args):
        self.n += 1
        return method(self, *args) if self.n % 4 else None
    return inner


CycleGANModel.backward_G = counted(CycleGANModel.backward_G)
"""
UNKNOWN = "is not a known version (hash "
# Differences that comparing two iterations cannot show: effects that come later, and side effects.
LATER: dict[str, tuple[str, str, str, str]] = {
    "a skipped update": (
        MODEL,
        STEP_D,
        f"self.n += 1\n        if self.n % 3: {STEP_D}",
        f"optimize_parameters {UNKNOWN}",
    ),
    "another skipped update": (
        MODEL,
        STEP_D,
        f"if self.seen % 3: {STEP_D}",
        f"optimize_parameters {UNKNOWN}",
    ),
    "an early return": (
        MODEL,
        OPTIMIZE,
        f"{OPTIMIZE}        if self.seen % 4 == 0: return\n",
        f"optimize_parameters {UNKNOWN}",
    ),
    "an extra loss": (
        MODEL,
        ADVERSARIAL,
        f"{ADVERSARIAL} + (self.loss_G_A if self.seen > 3 else 0)",
        f"backward_G {UNKNOWN}",
    ),
    "a loss weight that changes": (
        MODEL,
        "self.real_A) * opt.lambda_A\n",
        "self.real_A) * self.seen\n",
        f"backward_G {UNKNOWN}",
    ),
    "a condition on a loss": (
        MODEL,
        ADVERSARIAL,
        f"lambda_idt = self.loss_G_A\n        {ADVERSARIAL}",
        f"backward_G {UNKNOWN}",
    ),
    "a print": (MODEL, STEP_D, f"{STEP_D}\n        print('D')", f"optimize_parameters {UNKNOWN}"),
    "an average": (
        MODEL,
        STEP_D,
        f"{STEP_D}\n        self.ema.update(self.n)",
        f"optimize_parameters {UNKNOWN}",
    ),
    "a changed option": (
        MODEL,
        STEP_D,
        f"{STEP_D}\n        self.opt.lambda_A = 1.0",
        f"optimize_parameters {UNKNOWN}",
    ),
    "a loop": (
        MODEL,
        STEP_D,
        f"for _ in range(self.n): {STEP_D}",
        f"optimize_parameters {UNKNOWN}",
    ),
    "a decorator": (
        MODEL,
        OPTIMIZE,
        f"    @torch.enable_grad()\n{OPTIMIZE}",
        f"optimize_parameters {UNKNOWN}",
    ),
    "a call of another method": (
        MODEL,
        BACKWARD,
        BACKWARD.replace("_G()", "_all()"),
        f"optimize_parameters {UNKNOWN}",
    ),
    # functools.wraps points inspect to the known method as the source.
    "a wrapper": (MODEL, "# The end.", WRAPPED, f"backward_G {UNKNOWN}"),
    "a method of the instance": (
        MODEL,
        CRITERIONS,
        f"{CRITERIONS}; self.forward = functools.partial(CycleGANModel.forward, self)",
        "forward is not an ordinary method of its class",
    ),
    # The same sum in another order: an unknown version is not accepted even if it is equivalent.
    "an equivalent change": (
        MODEL,
        ADVERSARIAL,
        ADVERSARIAL.replace("self.loss_G_A + self.loss_G_B", "self.loss_G_B + self.loss_G_A"),
        f"backward_G {UNKNOWN}",
    ),
    # The comparison calls the criterion twelve times, so this change starts later.
    "a criterion that counts": (
        NETWORKS,
        LABEL,
        COUNT + f"        prediction = prediction * (1 + self.n // 15)\n{LABEL}",
        f"criterionGAN.forward {UNKNOWN}",
    ),
    # The comparison calls each of the two pools twice, so this change starts later.
    "a pool that counts": (
        POOL,
        QUERY,
        f"{QUERY}{COUNT}        if self.n > 3: return images\n",
        f"fake_A_pool.query {UNKNOWN}",
    ),
    "a pool's helper": (POOL, "return image\n", "return image + 0\n", f"fake_A_pool.one {UNKNOWN}"),
    "another distance": (
        MODEL,
        CRITERIONS,
        CRITERIONS.replace("= torch.nn.L1Loss()", "= Distance()"),
        "criterionCycle, a Distance, is not a plain torch.nn.L1Loss",
    ),
    "a distance with a hook": (
        MODEL,
        CRITERIONS,
        f"{CRITERIONS}; self.criterionIdt.register_forward_hook(functools.partial(double, 5))",
        "criterionIdt, a L1Loss, is not a plain torch.nn.L1Loss",
    ),
    "a criterion with a hook": (
        MODEL,
        CRITERIONS,
        f"{CRITERIONS}; self.criterionGAN.register_forward_hook(functools.partial(double, 13))",
        "criterionGAN, a GANLoss, has hooks or is not a torch.nn.Module",
    ),
    "another loss inside the criterion": (
        NETWORKS,
        "self.gan_mode = gan_mode",
        "self.gan_mode, self.loss = gan_mode, nn.HuberLoss()",
        "criterionGAN.loss, a HuberLoss, is not a plain MSELoss or BCEWithLogitsLoss",
    ),
}
HEAD = """import functools
calls = []


def double(start, module, inputs, output):
    calls.append(0)
    return output * (1 + (len(calls) >= start))


class Distance(torch.nn.L1Loss):
    n = 0

    def forward(self, x, y):
        self.n += 1
        return super().forward(x, y) * (1 + self.n // 6)


class Average:
    def update(self, n): print('D')


class CycleGANModel(BaseModel):
    n, seen, ema = 1, 0, Average()

"""
METHODS = f"""    def backward_all(self):
        self.backward_G()

{SET_INPUT}self, input):
        self.seen += 1
"""


@pytest.mark.parametrize("change", LATER)
def test_a_step_that_could_behave_differently_later_is_kept(
    tmp_path: Path, images: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    *edit, reason = LATER[change]
    edits: Edits = [
        (MODEL, "class CycleGANModel(BaseModel):\n", HEAD),
        (MODEL, f"{SET_INPUT}self, input):\n", METHODS),
        (MODEL, "        self.optimizer_D.step()\n", "        self.optimizer_D.step()\n# The end."),
        tuple(edit),  # type: ignore[list-item]
    ]
    folder = checkout(tmp_path, edits)
    ours = train(folder, images, "", Options(), epochs=1)
    printed = capsys.readouterr().out
    lines = [line for line in ours[2] if line.startswith("training step: ")]
    assert len(lines) == 1
    assert re.sub("hash [0-9a-f]{16}[)]$", "hash ", lines[0]) == f"training step: not replaced: its {reason}"
    assert_same(ours, train(folder, images, "", None, epochs=1))
    # Some of these steps print "D" at every update: a step must run as often as without our package.
    assert printed.count("D\n") == capsys.readouterr().out.count("D\n")


def test_a_step_without_source_is_kept_but_comments_and_methods_outside_the_step_do_not_matter(
    tmp_path: Path, images: Path
) -> None:
    folder = checkout(tmp_path / "unreadable")
    with (folder / MODEL).open("a") as file:
        file.write(
            "\n\nexec('def made(self, netD, real, fake): return 0')\nCycleGANModel.backward_D_A = made\n"
        )
    _, _, logged = train(folder, images, "", Options(), epochs=1)
    assert logged[-1] == "training step: not replaced: the source of its backward_D_A cannot be read"
    annotated = f'{OPTIMIZE.replace("):", ") -> None:")}        """Update."""  # all\n'
    edits = [
        (MODEL, OPTIMIZE, annotated),
        (MODEL, f"{SET_INPUT}self, input):\n", f"{SET_INPUT}self, input):\n        print(input)\n"),
    ]
    _, _, logged = train(checkout(tmp_path, edits), images, "", Options(), epochs=1)
    assert_ours(logged)


PLAIN = """
    def query(self, images, size=50):
        if self.size == 0 and not images:
            return {'a': (images, size), 'b': [1, 2]}['a']
        loss = self.one(images, other=True) * 2.0
        return loss
"""
SAME = {
    "comments and blank lines": PLAIN.replace("== 0", "== 0")
    .replace(":\n", ":  # why\n\n        # because\n")
    .replace("loss = ", "\n        # so\n        loss = "),
    "a docstring": PLAIN.replace("=50):\n", '=50):\n        """Query.\n\n        Twice.\n        """\n'),
    "annotations": PLAIN.replace(
        "images, size=50)", "images: 'Tensor', size: int=50) -> dict[str, int]"
    ).replace("loss =", "loss: float ="),
    "quotes and commas": PLAIN.replace("'", '"').replace("2]}", "2,],}").replace("True)", "True,)"),
    "lines and parentheses": PLAIN.replace(
        "self.size == 0 and not images",
        "(\n            self.size == 0\n            and (not images)\n        )",
    ).replace(
        "(images, other=True) * 2.0", "(\n            images,\n            other=True,\n        ) * (2.0)"
    ),
    "indentation": PLAIN.replace("        ", "          ").replace(
        "          return loss", "          return loss"
    ),
}
OTHER = {
    "a number": PLAIN.replace("2.0", "2.5"),
    "the type of a number": PLAIN.replace("2.0", "2"),
    "a default": PLAIN.replace("50", "49"),
    "a name": PLAIN.replace("images", "image"),
    "the name of the function": PLAIN.replace("query", "ask"),
    "an attribute": PLAIN.replace("self.one", "self.two"),
    "a keyword": PLAIN.replace("other=True", "True"),
    "an operator": PLAIN.replace("* 2.0", "/ 2.0"),
    "a condition": PLAIN.replace(" and not images", ""),
    "an order": PLAIN.replace("[1, 2]", "[2, 1]"),
    "a comma that makes a tuple": PLAIN.replace("return loss", "return loss,"),
    "parentheses that matter": PLAIN.replace("== 0 and not images", "== (0 and not images)"),
    "a statement": PLAIN.replace("        return loss", "        self.n += 1\n        return loss"),
    "a string that is not a docstring": PLAIN.replace("'a'", "'A'"),
    "a decorator": PLAIN.replace("    def", "    @torch.no_grad()\n    def"),
    "async": PLAIN.replace("def", "async def"),
}


@pytest.mark.parametrize("change", SAME)
def test_a_hash_does_not_depend_on_formatting(change: str) -> None:
    assert SAME[change] != PLAIN
    assert hash_of(SAME[change]) == hash_of(PLAIN)


@pytest.mark.parametrize("change", OTHER)
def test_a_hash_depends_on_everything_else(change: str) -> None:
    assert hash_of(OTHER[change]) != hash_of(PLAIN)


def test_the_table_lists_the_fake_checkouts_methods() -> None:
    """The table of known hashes contains the methods of the fake checkout.

    If you edit one of them, the failure of this test shows the new hash for the table.
    """
    owners = {
        (MODEL, "CycleGANModel"): [""],
        (BASE, "BaseModel"): [""],
        (NETWORKS, "GANLoss"): ["criterionGAN."],
        (POOL, "ImagePool"): ["fake_A_pool.", "fake_B_pool."],
    }
    hashes = set()
    for (file, name), prefixes in owners.items():
        text = (Path(__file__).parent / "checkout" / file).read_text()
        (cls,) = [node for node in ast.parse(text).body if getattr(node, "name", None) == name]
        for method in [node for node in cls.body if isinstance(node, ast.FunctionDef)]:
            source = ast.get_source_segment(text, method, padded=True)
            hashes |= {(f"{prefix}{method.name}", hash_of(source)) for prefix in prefixes}
    listed = {
        (path, known)
        for path, versions in KNOWN.items()
        for known, origin in versions.items()
        if "tests" in origin
    }
    assert listed == {(path, known) for path, known in hashes if path in KNOWN}
