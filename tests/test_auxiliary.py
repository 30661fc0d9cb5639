"""The auxiliary head of language-model training."""

from concurrent.futures import ThreadPoolExecutor

import torch
from tiny_runs import LM_SHAPE

from mgkit.band.compose import compose
from mgkit.band.labels import frame_labels
from mgkit.lm import LM, Condition
from mgkit.train.auxiliary import AuxiliaryHead


def test_auxiliary_head_trains_the_layers_below_it_from_any_thread():
    torch.manual_seed(0)
    lm = LM(LM_SHAPE)
    head = AuxiliaryHead(LM_SHAPE, 1)
    labels = torch.from_numpy(frame_labels(compose(1), 40))[None]
    steps, other = torch.randint(0, 16, (2, 1, 2, 40))

    def loss(steps: torch.Tensor) -> torch.Tensor:
        [residual] = lm.residuals(steps, Condition(), layers=(head.layer,))
        return head(residual, labels)

    with ThreadPoolExecutor(2) as pool:
        threaded = list(pool.map(loss, [steps, other]))
    assert all(torch.equal(a, b) for a, b in zip(threaded, [loss(steps), loss(other)], strict=True))
    optimizer = torch.optim.Adam([*lm.parameters(), *head.parameters()], 1e-2)
    first = float(loss(steps).sum().detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss(steps).sum().backward()
        optimizer.step()
    assert float(loss(steps).sum().detach()) < 0.2 * first
    assert (
        lm.layers[0].feed_forward.linear1.weight.grad.any()
        and lm.layers[1].feed_forward.linear1.weight.grad is None
    )


def test_auxiliary_head_leaves_no_hooks_on_the_model():
    lm = LM(LM_SHAPE)
    AuxiliaryHead(lm.config)
    for module in lm.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
