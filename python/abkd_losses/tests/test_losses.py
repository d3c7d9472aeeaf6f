"""Against the published losses' values, against finite differences, and what is refused."""
import json
import math
import pathlib

import pytest
import torch

import abkd_losses

GOLDENS = pathlib.Path(__file__).parents[3] / "crates/losses/tests/goldens/losses.json"
ALL = list(abkd_losses.divergences())
# Weights that are constants for the gradient, a kink, or a choice: no slope of the value.
NO_SLOPE = {"bdkd", "akl", "todi", "tvd"}


def logits(seed, rows=4, vocab=11, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocab, generator=generator)


@pytest.mark.filterwarnings("ignore:Input #0")  # which says that it is not float64
@pytest.mark.parametrize("loss", [id for id in ALL if id not in NO_SLOPE])
def test_gradients_are_slopes(loss):
    student, teacher = logits(1).requires_grad_(), logits(2)

    def value(student):
        return abkd_losses.divergence(loss, student=student, teacher=teacher, fidelity="paper").double()

    # The kernel computes in float32: steps of 1e-2, and what they leave of the value's curvature and rounding.
    assert torch.autograd.gradcheck(value, student, eps=1e-2, atol=2e-3, rtol=1e-2)


def test_cross_entropy_is_torchs():
    student, labels = logits(3).requires_grad_(), torch.tensor([0, 10, 3, 3])
    ours = abkd_losses.cross_entropy(student, labels)
    (grad,) = torch.autograd.grad(ours.sum(), student)
    theirs = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    (expected,) = torch.autograd.grad(theirs.sum(), student)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad, expected)


def test_forward_kl_is_torchs():
    student, teacher = logits(4).requires_grad_(), logits(5)
    ours = abkd_losses.divergence("fkld", student=student, teacher=teacher, fidelity="paper")
    log = lambda x: torch.log_softmax(x, 1)
    theirs = torch.nn.functional.kl_div(log(student), log(teacher), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(4.0)
    (grad,) = torch.autograd.grad((weights * ours).sum(), student)
    (expected,) = torch.autograd.grad((weights * theirs).sum(), student)
    torch.testing.assert_close(grad, expected)


def test_values_and_gradients_of_the_published_losses():
    names = {"fkl": "fkld", "rkl": "rkld", "js": "jensen", "sfkl": "skew_fkl", "srkl": "skew_rkl"}
    checked = 0
    for number, case in enumerate(json.loads(GOLDENS.read_text())):
        shape = (len(case["labels"]), case["vocab"])
        student, teacher = (torch.tensor(case[f"{model}_logits"]).reshape(shape) for model in ("student", "teacher"))
        kept = torch.tensor(case["labels"]) != -100
        for golden in case["results"]:
            name, _, params = golden["loss"].rstrip(")").partition("(")
            loss = ":".join(part for part in (names.get(name, name), params) if part)
            leaf = student.clone().requires_grad_()
            rows = abkd_losses.divergence(loss, student=leaf[kept], teacher=teacher[kept], fidelity="official")
            value = rows.mean()
            value.backward()
            assert math.isclose(value.item(), golden["value"], rel_tol=1e-5, abs_tol=1e-7), (loss, number)
            expected = torch.tensor(golden["grad"]).reshape(shape)
            error = (leaf.grad - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
            assert error < 1e-5, (loss, number, error)
            checked += 1
    assert checked > 20


# Those without published code, of probabilities and their logarithms.
FORMULAS = {
    "jeffreys": lambda p, q, lp, lq: ((p - q) * (lp - lq)).sum(1),
    "chi2": lambda p, q, lp, lq: ((p - q) ** 2 / q).sum(1),
    "renyi:0.3": lambda p, q, lp, lq: torch.logsumexp(0.3 * lp + 0.7 * lq, 1) / (0.3 - 1),
    "renyi:2": lambda p, q, lp, lq: torch.logsumexp(2 * lp - lq, 1),
    "todi": lambda p, q, lp, lq: (
        torch.sigmoid(lp - lq).detach() * p * (lp - lq) + torch.sigmoid(lq - lp).detach() * q * (lq - lp)
    ).sum(1),
}


@pytest.mark.parametrize("loss", FORMULAS)
def test_newer_divergences_are_their_formulas(loss):
    student, teacher = logits(19).requires_grad_(), logits(20)
    ours = abkd_losses.divergence(loss, student=student, teacher=teacher)
    leaf = student.detach().double().requires_grad_()
    lp, lq = torch.log_softmax(teacher.double(), 1), torch.log_softmax(leaf, 1)
    theirs = FORMULAS[loss](lp.exp(), lq.exp(), lp, lq)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    ours.sum().backward(), theirs.sum().backward()
    error = (student.grad.double() - leaf.grad).abs().max() / leaf.grad.abs().max()
    assert error < 1e-5, error


def test_a_temperature_is_torchs_division():
    student, teacher = logits(15).requires_grad_(), logits(16)
    ours = abkd_losses.divergence("fkld:tau=2,squared=1", student=student, teacher=teacher, fidelity="paper")
    log = lambda x: torch.log_softmax(x / 2, 1)
    theirs = torch.nn.functional.kl_div(log(student), log(teacher), reduction="none", log_target=True).sum(1) * 4
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(value.sum(), student)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_all_but_the_top_tokens_are_one_class():
    student, teacher = logits(17).requires_grad_(), logits(18)
    ours = abkd_losses.divergence("rkld:top=3", student=student, teacher=teacher)
    tokens = teacher.topk(3).indices
    others = torch.ones_like(teacher, dtype=torch.bool).scatter(1, tokens, False)

    def classes(x):
        tail = x.masked_fill(~others, -math.inf).logsumexp(1, keepdim=True)
        return torch.log_softmax(torch.cat([x.gather(1, tokens), tail], 1), 1)

    log_q, log_p = classes(student), classes(teacher)
    theirs = (log_q.exp() * (log_q - log_p)).sum(1)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(value.sum(), student)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("alpha", [-3.0, -1.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("loss", ["fkld", "rkld"])
def test_amids_assistant_stands_in_the_students_place(loss, alpha):
    student, teacher = logits(21).requires_grad_(), logits(22)
    text = f"{loss}:amid_alpha={alpha},amid_lambda=0.3"
    ours = abkd_losses.divergence(text, student=student, teacher=teacher, fidelity="paper")
    leaf = student.detach().double().requires_grad_()
    lp, lq = torch.log_softmax(teacher.double(), 1), torch.log_softmax(leaf, 1)
    c = (1 - alpha) / 2
    if c == 0:
        mixed = 0.3 * lp + 0.7 * lq
    else:
        mixed = torch.log(0.3 * torch.exp(c * lp) + 0.7 * torch.exp(c * lq)) / c
    lr = torch.log_softmax(mixed, 1)
    theirs = (lp.exp() * (lp - lr) if loss == "fkld" else lr.exp() * (lr - lp)).sum(1)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    ours.sum().backward(), theirs.sum().backward()
    error = (student.grad.double() - leaf.grad).abs().max() / leaf.grad.abs().max()
    assert error < 1e-5, error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(dtype):
    student, teacher = logits(6).to(dtype).requires_grad_(), logits(7).to(dtype)
    wide = student.detach().float().requires_grad_()
    ours = abkd_losses.divergence("ab", student=student, teacher=teacher)
    theirs = abkd_losses.divergence("ab", student=wide, teacher=teacher.float())
    assert torch.equal(ours, theirs)
    ours.sum().backward(), theirs.sum().backward()
    assert student.grad.dtype == dtype and torch.equal(student.grad, wide.grad.to(dtype))


def test_layout_masks_and_no_rows():
    teacher, student = logits(8, 11, 4).T, logits(9, 11, 4).T.requires_grad_()
    plain = [x.detach().contiguous() for x in (student, teacher)]
    both = [abkd_losses.divergence("jensen:0.5", student=z, teacher=t) for z, t in ((student, teacher), plain)]
    assert torch.equal(*both)
    masked = logits(10)
    masked[:, 3] = -math.inf
    masked.requires_grad_()
    value = abkd_losses.divergence("fkld", student=masked, teacher=logits(11))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(masked.grad).all() and (masked.grad[:, 3] == 0).all()
    none = torch.zeros(0, 5, requires_grad=True)
    abkd_losses.divergence("fkld", student=none, teacher=torch.zeros(0, 5)).sum().backward()
    assert none.grad.shape == (0, 5)
    before = logits(12)
    kept = before.clone()
    abkd_losses.divergence("fkld", student=before, teacher=logits(13))
    assert torch.equal(before, kept)


@pytest.mark.parametrize(
    "error, says, call",
    [
        (ValueError, "did you mean `fkld`", lambda z: ("fkl", z, z)),
        (ValueError, "no parameter `gamma`", lambda z: ("ab:gamma=1", z, z)),
        (ValueError, "tau = 0 is not a temperature", lambda z: ("fkld:tau=0", z, z)),
        (TypeError, "float64", lambda z: ("fkld", z.double(), z)),
        (TypeError, "one type", lambda z: ("fkld", z.half(), z)),
        (ValueError, "flatten", lambda z: ("fkld", z[None], z)),
        (ValueError, r"\[4, 11\].*\[4, 10\]", lambda z: ("fkld", z, z[:, 1:])),
        (ValueError, "row 2: a logit is NaN", lambda z: ("fkld", z, z.index_fill(0, torch.tensor([2]), math.nan))),
        (ValueError, "row 0: no finite logit", lambda z: ("fkld", torch.full_like(z, -math.inf), z)),
        (ValueError, "vocabulary of 0", lambda z: ("fkld", z[:, :0], z[:, :0])),
        (ValueError, "meta", lambda z: ("fkld", z.to("meta"), z)),
        (TypeError, "list", lambda z: ("fkld", z.tolist(), z)),
    ],
)
def test_what_is_wrong_is_said(error, says, call):
    loss, student, teacher = call(logits(14))
    with pytest.raises(error, match=says):
        abkd_losses.divergence(loss, student=student, teacher=teacher)


def test_wrong_labels_and_fidelities_are_said():
    with pytest.raises(ValueError, match="row 1: label 11 is outside"):
        abkd_losses.cross_entropy(logits(1), torch.tensor([0, 11, 1, 1]))
    with pytest.raises(ValueError, match="label -1"):
        abkd_losses.cross_entropy(logits(1), torch.tensor([0, -1, 1, 1]))
    with pytest.raises(ValueError, match="paper"):
        abkd_losses.divergence("fkld", student=logits(1), teacher=logits(2), fidelity="Paper")
    with pytest.raises(TypeError):
        abkd_losses.divergence("fkld", logits(1), logits(2))  # by name only


def test_a_kept_graph_gives_the_same_again():
    student = logits(23).requires_grad_()
    value = abkd_losses.divergence("ab", student=student, teacher=logits(24))
    weights = torch.arange(1.0, 5.0)
    (first,) = torch.autograd.grad(value, student, weights, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(value, student, 3 * weights)
    torch.testing.assert_close(second, 3 * first)


def test_no_second_derivatives():
    student = logits(1).requires_grad_()
    value = abkd_losses.divergence("fkld", student=student, teacher=logits(2)).square().sum()
    (grad,) = torch.autograd.grad(value, student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
