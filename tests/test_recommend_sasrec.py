"SASRec against PyTorch's own encoder, and what dropout may and may not do."
import numpy as np
import pytest
import torch
from torch import nn
from recx.recommend.sasrec import SASRec


def given_weights(block, slow):
    "The weights of a block in an encoder layer of PyTorch's."
    pairs = {'self_attn.in_proj': block.qkv, 'self_attn.out_proj': block.mix, 'linear1': block.inner, 'linear2': block.outer, 'norm1': block.norm1, 'norm2': block.norm2}
    slow.load_state_dict({f'{name}{"_" if name.endswith("in_proj") else "."}{part}': getattr(ours, part) for name, ours in pairs.items() for part in ('weight', 'bias')})
    return slow


@pytest.mark.parametrize('blocks, heads', [(1, 1), (2, 2), (3, 4)])
def test_sasrec_against_torchs_encoder(blocks, heads):
    torch.manual_seed(0)
    model, lengths = SASRec(8, 7, blocks, heads), torch.tensor([6, 3, 1])
    for p in model.parameters(): nn.init.normal_(p, std=.4)
    layers = [given_weights(block, nn.TransformerEncoderLayer(8, heads, 8, 0., 'relu', batch_first=True)).train() for block in model.blocks]
    x, causal = torch.randn(3, 6, 8), nn.Transformer.generate_square_subsequent_mask(6)
    with torch.no_grad():
        expected = x*8**.5 + model.position[:6]
        for layer in layers: expected = layer(expected, src_mask=causal)
        made = model(x, lengths)
    for row, n in enumerate(lengths): assert torch.allclose(made[row, :n], expected[row, :n], atol=1e-5)


def test_dropout_acts_in_training_alone_and_is_repeated_by_its_seed():
    torch.manual_seed(0)
    model, x, lengths = SASRec(8, 7, rate=.5), torch.randn(2, 5, 8), torch.tensor([5, 4])
    runs = [model(x, lengths, np.random.default_rng(seed)).detach() for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(model(x, lengths).detach(), model(x, lengths).detach())
