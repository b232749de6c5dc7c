"""A proxy that is a formula: scores settings, prints, saves and loads.

Letters: n settings, L layers, F formats.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictors.zerocost.arrays import FloatArray
from predictors.zerocost.assembly import assemble
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.canonical import canonical, without_sign
from predictors.zerocost.evolution.evaluation import Evaluator
from predictors.zerocost.evolution.expressions import (
    Expression,
    Input,
    Unary,
    from_json,
    subexpressions,
    to_json,
)
from predictors.zerocost.evolution.layer_inputs import LayerInputs
from predictors.zerocost.evolution.operations import BINARY
from predictors.zerocost.evolution.setting_table import SettingTable
from predictors.zerocost.proxy import Direction

__all__ = ["Program", "load_program", "save_program"]

_SCHEMA = "proxy program 1"
_MOST_SIZE = 200  # inputs and operations of a formula in a file


@dataclass(frozen=True)
class Program:
    """A formula with one number for each layer and format; a setting's score is their sum.

    The sum goes over the layers, each in the format it has. ``norm(gradients) * bits`` adds up,
    layer by layer, the norm of its gradients times the bits of its format. The expression is held
    in its canonical form without an outermost negation, so that equal programs rank alike.

    Attributes:
        expression: It must depend on the format, so on ``bits`` or ``errors``.
        direction: ``up``: the larger of two scores is predicted better; ``down``: the smaller.

    Raises:
        ProxyError: The expression does not depend on the format, or an unknown direction.
    """

    expression: Expression
    direction: Direction

    def __post_init__(self) -> None:
        """Brings the expression into its one form."""
        if not self.expression.sees_format:
            raise ProxyError(
                f"a program must depend on bits or errors, got {formula(self.expression)}"
            )
        if self.direction not in ("up", "down"):
            raise ProxyError(f"direction must be up or down, got {self.direction!r}")
        object.__setattr__(self, "expression", without_sign(canonical(self.expression)))

    @property
    def formula(self) -> str:
        """The formula of a layer in a format, as one would write it."""
        return formula(self.expression)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs it reads, sorted."""
        parts = (part for _, part in subexpressions(self.expression))
        return tuple(sorted({part.name for part in parts if isinstance(part, Input)}))

    def layer_scores(self, inputs: LayerInputs) -> FloatArray:
        """Returns (L, F) what each layer adds in each format, for :func:`assemble`.

        Raises:
            ProxyError: An input is missing, or the formula leaves its domain on these layers.
        """
        missing = [name for name in self.inputs if name not in inputs.kinds]
        if missing:
            raise ProxyError(
                f"{self.formula} needs {', '.join(missing)}; there are: {', '.join(inputs.kinds)}"
            )
        scores = Evaluator(inputs).numbers(self.expression)
        if scores is None:
            raise ProxyError(f"{self.formula} has no finite value on these layers")
        return scores

    def score(self, table: SettingTable) -> FloatArray:
        """Returns (n,) scores of a table's settings; ``direction`` says which are good.

        Raises:
            ProxyError: As :meth:`layer_scores`.
        """
        return assemble(self.layer_scores(table.inputs), table.settings)


def formula(expression: Expression) -> str:
    """Returns an expression as one would write it.

    >>> formula(Unary("mean", Unary("log_abs", Input("gradients"))))
    'mean(log_abs(gradients))'
    """
    if isinstance(expression, Input):
        return expression.name
    if isinstance(expression, Unary):
        if expression.operation == "negate":
            return f"-{_operand(expression.operand)}"
        return f"{expression.operation}({formula(expression.operand)})"
    sign = BINARY[expression.operation].sign
    return f"{_operand(expression.left)} {sign} {_operand(expression.right)}"


def _operand(expression: Expression) -> str:
    if isinstance(expression, Input | Unary):
        return formula(expression)
    return f"({formula(expression)})"


def save_program(path: Path, program: Program) -> None:
    """Writes a program as JSON.

    Args:
        path: Of the file; its folder is made if missing.
        program: To write.
    """
    tree = {
        "schema": _SCHEMA,
        "formula": program.formula,
        "direction": program.direction,
        "expression": to_json(program.expression),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def load_program(path: Path) -> Program:
    """Reads what :func:`save_program` wrote. Nothing in the file is run.

    Raises:
        ProxyError: The file is missing, damaged, foreign, or its formula is not that of its
            expression.
    """
    tree = _tree(path)
    if not isinstance(tree, dict) or tree.get("schema") != _SCHEMA:
        raise ProxyError(f"{path} is no program ({_SCHEMA!r}): evolve it anew")
    try:
        expression = from_json(tree.get("expression"))
        if expression.size > _MOST_SIZE:
            raise ProxyError(f"a formula may have {_MOST_SIZE} parts, got {expression.size}")
        program = Program(expression, tree.get("direction"))  # type: ignore[arg-type]
    except ProxyError as fault:
        raise ProxyError(f"{path} is damaged ({fault}): evolve it anew") from None
    if tree.get("formula") != program.formula:
        raise ProxyError(
            f"{path} is damaged (the formula is not that of the expression, {program.formula}): "
            "evolve it anew"
        )
    return program


def _tree(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else type(fault).__name__
        raise ProxyError(f"{path} is missing or damaged ({reason}): evolve it anew") from None
