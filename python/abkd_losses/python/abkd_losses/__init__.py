"""Divergences between the next-token distributions of a teacher p and a student q, on the CPU.

    import abkd_losses
    loss = abkd_losses.divergence("ab:0.2,0.7", student=logits, teacher=teacher_logits)   # [N], nats
    loss[mask].mean().backward()

Logits are `[N, V]` in float32, float16 or bfloat16, and are read where they are. A call computes value and gradient
together, in log space, with one buffer `[N, V]`: that of the gradient. Entries of `-inf` are left out. RAYON_NUM_THREADS sets
the number of threads.
"""
import torch
from torch.autograd.function import once_differentiable

from . import _native

__all__ = ["cross_entropy", "divergence", "divergences"]

_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


# Whether the backward pass that runs keeps its graph for another one; yes, where PyTorch does not say.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class _Memory:
    def __init__(self, student, grad, teacher, value):
        self.student, self.grad, self.value = student.data_ptr(), grad.data_ptr(), value.data_ptr()
        self.teacher = 0 if teacher is None else teacher.data_ptr()
        self.rows, self.vocab = student.shape


def _checked(name, logits):
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"{name}: a torch.Tensor of logits is needed, not {type(logits).__name__}")
    if logits.dim() != 2:
        raise ValueError(f"{name}: logits are [N, V], these have shape {list(logits.shape)}; flatten the tokens first")
    if logits.device.type != "cpu":
        raise ValueError(f"{name}: logits on {logits.device}; this package computes on the CPU")
    if logits.dtype not in _DTYPES:
        raise TypeError(f"{name}: logits in {logits.dtype}; float32, float16 and bfloat16 are read")
    if logits.shape[0] > 0 and logits.shape[1] == 0:
        raise ValueError(f"{name}: a vocabulary of 0 tokens")


class _Rows(torch.autograd.Function):
    """Values whose gradient is known with them: `run` writes both."""

    @staticmethod
    def forward(ctx, student, run):
        student = student.detach().contiguous()
        grad = torch.empty_like(student)
        value = torch.empty(student.shape[0], dtype=torch.float32)
        run(student, grad, value)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value):
        (grad,) = ctx.saved_tensors
        weights = grad_value.to(grad.dtype).unsqueeze(1)
        # In place where the graph is used once, as it mostly is: another buffer would cost as much as the kernel.
        return (grad * weights if _keeps_graph() else grad.mul_(weights)), None


def divergence(loss, *, student, teacher, fidelity=None):
    """Divergence of each row, `[N]` in float32 and nats, differentiable in the student's logits; the teacher is a constant.

    `loss`: an id of `divergences()`, with parameters by position or name: "fkld", "ab:0.2,0.7", "jensen:lambda=0.5".
    `fidelity`: "paper" (the formula) or "official" (what the authors' code computes); without it what the ABKD paper's
    tables are made with. No second derivatives.
    """
    _checked("student", student)
    _checked("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(f"student logits are {list(student.shape)}, teacher logits {list(teacher.shape)}")
    if student.dtype != teacher.dtype:
        raise TypeError(f"student logits are {student.dtype}, teacher logits {teacher.dtype}: give both one type")
    teacher = teacher.detach().contiguous()
    dtype = _DTYPES[student.dtype]

    def run(student, grad, value):
        _native.divergence(loss, fidelity, dtype, _Memory(student, grad, teacher, value))

    return _Rows.apply(student, run)


def cross_entropy(student, labels):
    """Cross-entropy `-log q[label]` of each row, `[N]` in float32, differentiable in the student's logits.

    `labels`: N token ids, an integer tensor.
    """
    _checked("student", student)
    n, vocab = student.shape
    if labels.shape != (n,) or labels.dtype.is_floating_point:
        raise ValueError(f"labels: {n} integers are needed, not {labels.dtype} of shape {list(labels.shape)}")
    outside = (labels < 0) | (labels >= vocab)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"row {row}: label {int(labels[row])} is outside the vocabulary of {vocab}")
    ids, dtype = labels.tolist(), _DTYPES[student.dtype]

    def run(student, grad, value):
        _native.cross_entropy(ids, dtype, _Memory(student, grad, None, value))

    return _Rows.apply(student, run)


def divergences():
    """Every divergence: id to (formula, parameters with their values in the paper)."""
    return {id: (formula, dict(parameters)) for id, formula, parameters in _native.divergences()}
