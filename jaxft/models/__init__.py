"""Model families, one file each. The key is the hub's `model_type`; a family file offers, for `build` and `hf`:

Config, Model, TINY                       the network (its vocab, positions, types and pad_id are asked for by others)
                                          and a Config that a test runs in a second
KIND                                      encoder, decoder or encdec of text; vision: an encoder of images
VARIANTS                                  name -> Config, one for each way of computing that TINY does not take; seen
                                          with the head that the name begins with, else with the first of HF_HEADS
HF, HF_HEADS                              parameter path -> (hub tensor name, "axes on disk -> axes here"): hf/layout.py
HF_PREFIX, HF_IGNORE, HF_OTHER, HF_LEGACY what a checkpoint of this family may also look like
HF_FIXED                                  fields of config.json that change numbers, each with the one value implemented
HF_TIED                                   head -> {tensor that may be there as a copy: the one it is a copy of}
HF_LENT                                   the same of tensors of their own that, where they are not there, begin as
                                          a copy; only where a family has some
HF_ARCHITECTURES                          head -> the class that opens it in transformers
config_from_hf, config_to_hf              config.json both ways; an unsupported field is refused by name
flops_per_token                           for model FLOP utilisation, without the head
"""

MODELS = {
    "bart": "jaxft.models.bart",
    "bert": "jaxft.models.bert",
    "deberta-v2": "jaxft.models.deberta_v2",
    "distilbert": "jaxft.models.distilbert",
    "electra": "jaxft.models.electra",
    "gemma2": "jaxft.models.gemma2",
    "gemma3_text": "jaxft.models.gemma3_text",
    "gpt2": "jaxft.models.gpt2",
    "llama": "jaxft.models.llama",
    "marian": "jaxft.models.marian",
    "mistral": "jaxft.models.mistral",
    "mixtral": "jaxft.models.mixtral",
    "modernbert": "jaxft.models.modernbert",
    "mt5": "jaxft.models.mt5",
    "phi3": "jaxft.models.phi3",
    "qwen2": "jaxft.models.qwen2",
    "qwen3": "jaxft.models.qwen3",
    "qwen3_moe": "jaxft.models.qwen3_moe",
    "roberta": "jaxft.models.roberta",
    "t5": "jaxft.models.t5",
    "vit": "jaxft.models.vit",
    "xlm-roberta": "jaxft.models.xlm_roberta",
}

# Model types that people will try, and why there is no family for them.
ABSENT = {
    "deepseek_v3": "its latent attention, routing by groups of experts and fp8 block scales are not implemented",
    "gemma3": "it reads images too; use a text-only checkpoint, whose model_type is gemma3_text",
}

# What those who open an export elsewhere must know.
NOTES = {
    "deberta-v2": (
        "of a masked LM with `legacy=false` (`lm_predictions.lm_head.*`) the export has the older names "
        "(`cls.predictions.*`), which every version reads"
    ),
    "gemma2": (
        'transformers 4 caps the attention scores with `attn_implementation="eager"` only, which there is not the '
        "default; transformers 5 needs nothing"
    ),
}

# Fields of a hub config.json that change no number of a forward or backward pass, in any family.
# fmt: off
HARMLESS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "_num_labels", "architectures",
    "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id", "directionality", "dtype", "eos_token_id",
    "finetuning_task", "gradient_checkpointing", "id2label", "label2id", "cls_token_id", "is_composition", "is_decoder",
    "mask_token_id", "model_type", "num_labels", "output_attentions", "output_hidden_states", "output_past",
    "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
    "prefix", "problem_type", "return_dict", "sep_token_id", "task_specific_params", "tokenizer_class",
    "torch_dtype", "torchscript", "transformers_version", "unk_token_id", "use_bfloat16", "use_cache",
    # How texts are generated, which older files tell here.
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "force_bos_token_to_be_generated",
    "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
    "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
})
# fmt: on
