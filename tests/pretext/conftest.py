"""What tests of pretext tasks share."""

import pytest
import torch


@pytest.fixture
def overfit():
    """Train a task's model on one batch; return the loss of every step, the first before any change."""

    def run(task, model, batch, *, steps=20, lr=0.01):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        losses = []
        for step in range(steps):
            loss = sum(task.loss(model(batch.inputs, *batch.context), batch).values())
            optimizer.zero_grad()
            loss.backward()
            if step == 0 and task.trains_decoder:
                for name, parameter in model.named_parameters():
                    assert float(parameter.grad.abs().max()) > 0, name
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run
