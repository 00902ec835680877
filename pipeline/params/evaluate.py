"""Section `evaluate`: what is measured."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params.section import Count, Positive, Section, Seed


class Evaluate(Section):
    watch: str = Field(description="file or folder whose content DVC watches for this stage (see dvc.yaml)")
    device: Literal["auto", "cpu", "cuda", "mps"]
    devices: Positive = Field(description="GPUs that share the scoring; the figures are the same for any number")
    batch_size: Positive = Field(description="windows in one forward pass")
    stride: Positive | None = Field(description="sliding window: tokens scored per window; null: block by block")
    train_sample_tokens: Count = Field(description="training tokens scored too; 0: none")
    prompts: list[Annotated[str, Field(min_length=1)]] = Field(
        description="beginnings that the model continues; []: the first words of three val documents"
    )
    temperatures: list[Annotated[float, Field(ge=0)]] = Field(min_length=1, description="0: greedy")
    samples_per_prompt: Positive = Field(description="samples for each prompt and temperature above 0")
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Positive = Field(description="tokens of a sample at most; the model's context bounds it too")
    seed: Seed = Field(description="of the first sample; the next ones count up")
    ngram_order: Positive = Field(description="order of the Kneser-Ney baseline")
    baseline_bytes: Count = Field(description="training text for n-grams; 0: no baselines")
    memorisation_bytes: Count = Field(description="training text searched for overlaps; 0: none")
    lm_eval_tasks: list[str] = Field(description="lm-eval task files; needs the extra lm-eval")
