"""Attention to documents of a stream: each is computed as if it were alone, for every family that it serves."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.model import documents, noise, stream
from finetune_trainer.model.documents import Documents
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from tests.trainer.support.families import FAMILIES, GROUPED, ROPE

CLOSE = 1e-5
LENGTHS = (5, 1, 3, 14, 9)
"""Of documents, shorter and longer than `WINDOW`."""
WINDOW = 4
ROWS = [Row([(7 * at + 13 * length) % 60 + 3 for at in range(length)], [(0, length)]) for length in LENGTHS]
BATCH = collate.stream(ROWS)
LATENT = {
    **ROPE,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
SERVED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    **{name: FAMILIES[name] for name in ("llama", "qwen2", "qwen3", "gemma3", "mistral", "glm", "phi", "gpt2")},
    "mla": ("DeepseekV3Config", None, LATENT),
    "experts": ("MixtralConfig", None, {**GROUPED, "num_local_experts": 4}),
}


def config_of(family: str, **settings: Any) -> Any:
    name, _, values = SERVED[family]
    window = {"sliding_window": WINDOW} if "sliding_window" in values else {}
    numbers = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # Gemma 3 has both kinds of layers.
    layers = {"layer_types": ["sliding_attention", "full_attention"]} if family == "gemma3" else {}
    return getattr(transformers, name)(**{**values, **numbers, **window, **layers, **settings})


def model_of(config: Any, attention: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_config(config, attn_implementation=attention, dtype=dtype).eval()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert len(found) > 10
    return found


@pytest.mark.parametrize("family", SERVED)
def test_documents_of_a_stream_are_computed_as_with_a_block_mask_and_as_if_each_was_alone(family: str) -> None:
    """transformers makes the mask, from positions that restart; it has the windows of sliding layers, too."""
    masked, ours, single = (model_of(config_of(family), name) for name in ("sdpa", documents.NAME, "sdpa"))
    expected = masked(input_ids=BATCH["input_ids"], position_ids=BATCH["position_ids"], use_cache=False).logits[0]
    found = ours(**stream.forward_inputs(BATCH)).logits[0]
    alone = [single(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0] for row in ROWS]
    assert torch.allclose(found, expected, atol=CLOSE)
    assert torch.allclose(found, torch.cat(alone), atol=CLOSE)

    slopes = torch.linspace(-1, 1, found.numel()).reshape(found.shape) / found.numel() ** 0.5
    for logits in (expected, found, torch.cat(alone)):
        (logits * slopes).sum().backward()
    wanted, by_document = gradients(masked), gradients(single)
    for name, gradient in gradients(ours).items():
        assert torch.allclose(gradient, wanted[name], atol=CLOSE, rtol=1e-4), name
        assert torch.allclose(gradient, by_document[name], atol=CLOSE, rtol=1e-4), name


def test_layers_that_are_computed_again_get_the_documents_too() -> None:
    found = []
    for again in (False, True):
        model = model_of(config_of("qwen3"), documents.NAME).train()
        if again:
            model.gradient_checkpointing_enable()
        model(**stream.forward_inputs(BATCH)).logits.square().sum().backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["all heads", "grouped"])
def test_the_window_and_the_scale_are_those_that_the_layer_names(window: int | None, heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    tokens, size, scale = sum(LENGTHS), 8, 0.2
    query = torch.randn(1, heads[0], tokens, size)
    key, value = (torch.randn(1, heads[1], tokens, size) for _ in range(2))
    found, _ = documents.attention(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        documents=Documents(BATCH["lengths"], BATCH["bounds"]),
        scaling=scale,
        sliding_window=window,
    )
    key, value = (tensor.repeat_interleave(heads[0] // heads[1], dim=1) for tensor in (key, value))
    place, document = torch.arange(tokens), BATCH["document_ids"]
    seen = (document[:, None] == document) & (place[:, None] >= place)
    if window is not None:
        seen &= place[:, None] - place < window
    scores = (scale * query @ key.mT).masked_fill(~seen, -torch.inf)
    assert torch.allclose(found, (scores.softmax(-1) @ value).transpose(1, 2), atol=CLOSE)


@pytest.mark.parametrize("autocast", [True, False])
def test_queries_in_fp32_beside_values_in_bf16_are_computed_in_bf16(autocast: bool) -> None:
    """Weights that are trained whole are in fp32, and norms leave queries in fp32."""
    query, key, value = (torch.randn(1, 2, sum(LENGTHS), 8) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, _ = documents.attention(
            torch.nn.Module(),
            query,
            key,
            value if autocast else value.bfloat16(),
            None,
            documents=Documents(BATCH["lengths"], BATCH["bounds"]),
        )
    assert found.dtype == torch.bfloat16


def test_under_autocast_a_model_in_fp32_computes_what_it_computes_in_fp32() -> None:
    model = model_of(config_of("llama"), documents.NAME)
    exact = model(**stream.forward_inputs(BATCH)).logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(**stream.forward_inputs(BATCH)).logits
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, atol=0.05)
    rounded.float().square().sum().backward()
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model).values())


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Tensors without content, as if they were on a GPU: what would wait for their numbers raises an error. Yields the
    arguments of each call of torch's kernel."""
    calls: list[dict[str, Any]] = []

    def recorded(*tensors: torch.Tensor, **settings: Any) -> torch.Tensor:
        calls.append(settings | {"dtypes": {tensor.dtype for tensor in tensors}})
        kernel: Any = varlen.varlen_attn
        output = kernel(*tensors, **settings)
        assert isinstance(output, torch.Tensor)
        return output

    monkeypatch.setattr(documents, "_has_kernel", lambda query, _dropout: query.dtype in documents.HALF)
    monkeypatch.setattr(documents, "varlen_attn", recorded)
    with FakeTensorMode():
        yield calls


@pytest.mark.parametrize("precision", ["bf16", "autocast", "fp32"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mla"])
def test_no_layer_waits_for_the_gpu(family: str, precision: str, kernel_calls: list[dict[str, Any]]) -> None:
    """Full and freeze train weights in fp32 under autocast. Without it, torch's kernel can't compute them."""
    config = config_of(family, **({"first_k_dense_replace": 2} if family == "mla" else {}))
    model = model_of(config, documents.NAME, torch.bfloat16 if precision == "bf16" else torch.float32)
    model.train().gradient_checkpointing_enable()
    inputs = {
        name: torch.empty(value.shape, dtype=value.dtype) if torch.is_tensor(value) else value
        for name, value in BATCH.items()
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        model(**stream.forward_inputs(inputs)).logits.float().sum().backward()
    if precision == "fp32":
        assert not kernel_calls
        return
    assert len(kernel_calls) == 2 * config.num_hidden_layers  # layers are computed again in the backward pass
    assert all(call["dtypes"] == {torch.bfloat16} for call in kernel_calls)
    assert all(call["max_q"] == call["max_k"] == max(LENGTHS) for call in kernel_calls)
    windows = {call["window_size"] for call in kernel_calls}
    assert windows == ({(-1, 0), (WINDOW - 1, 0)} if family == "gemma3" else {(-1, 0)})


def test_torchs_kernel_computes_what_it_can_on_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (9, 0)
    monkeypatch.setattr(documents, "_capability", lambda _: capability)

    def has_kernel(dtype: torch.dtype, size: int = 64, dropout: float = 0.0, device: str = "cuda") -> bool:
        with FakeTensorMode():
            return documents._has_kernel(torch.empty(1, 2, 8, size, dtype=dtype, device=device), dropout)

    assert has_kernel(torch.bfloat16)
    assert has_kernel(torch.float16, size=256)
    assert not has_kernel(torch.float32)
    assert not has_kernel(torch.bfloat16, size=320)
    assert not has_kernel(torch.bfloat16, dropout=0.1)
    assert not has_kernel(torch.bfloat16, device="cpu")
    capability = (7, 5)
    assert not has_kernel(torch.float16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"is called without documents: use model\.stream\.forward_inputs"),
        ({"softcap": 50.0}, r"does not compute: \['softcap'\]"),
        ({"s_aux": torch.zeros(2)}, r"does not compute: \['s_aux'\]"),
        ({"is_causal": False}, "does not compute:  causal=False"),
    ],
    ids=str,
)
def test_what_it_does_not_compute_is_an_error_and_never_left_out(settings: dict[str, Any], message: str) -> None:
    known: dict[str, Any] = {"documents": Documents(BATCH["lengths"], BATCH["bounds"])} if settings else {}
    attention: Any = documents.attention
    states = [torch.randn(1, 2, sum(LENGTHS), 8) for _ in range(3)]
    with pytest.raises(ValueError, match=message):
        attention(torch.nn.Module(), *states, None, **known, **settings)


def test_the_noise_on_embeddings_depends_on_a_documents_own_length() -> None:
    model = model_of(config_of("llama"), documents.NAME)
    noise.add(model, 5.0)
    embeddings, seen = model.get_input_embeddings(), list[torch.Tensor]()
    embeddings.register_forward_hook(lambda _module, _args, output: seen.append(output))
    for training in (False, True):
        model.train(training)(**stream.forward_inputs(BATCH))
    exact, noisy = (torch.split(output[0].detach(), list(LENGTHS)) for output in seen)
    for length, before, after in zip(LENGTHS, exact, noisy, strict=True):
        limit = 5.0 / (length * model.config.hidden_size) ** 0.5
        assert 0.8 * limit < float((after - before).abs().max()) <= 1.001 * limit
