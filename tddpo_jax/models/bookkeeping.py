"""The attributes of a `config.json` that cannot change what a model computes, in any family.

Tools write them for their own use. An attribute that is neither here nor read by the family is
refused, because it may change the mathematics.
"""

from __future__ import annotations

NAMES = (
    *("architectures", "auto_map", "model_type", "model_name", "name_or_path", "_name_or_path"),
    *("torch_dtype", "dtype", "_commit_hash", "is_llama_config", "max_sequence_length"),
    # Token ids: the tokenizer's files and `generation_config.json` say what is used.
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
    *("decoder_start_token_id", "tokenizer_class", "model_max_length", "prefix", "ignore_index"),
)
# What tools record about themselves.
VERSIONS = (
    *("transformers_version", "transformers.js_config", "peft_version", "mergekit_version"),
    *("unsloth_version", "unsloth_fixed", "unsloth_tokenizer", "unsloth_was_loaded"),
)
# How transformers runs the model, and what it returns.
RUNNING = (
    *("use_cache", "output_attentions", "output_hidden_states", "output_scores", "return_dict"),
    *("return_dict_in_generate", "torchscript", "use_bfloat16", "tf_legacy_loss"),
    *("chunk_size_feed_forward", "gradient_checkpointing", "use_reentrant", "_attn_implementation"),
    *("attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
    *("_flash_attn_2_enabled", "use_flash_attention_2"),
)
# Pre-training, and heads that a causal language model does not have.
TRAINING = (
    *("initializer_range", "is_decoder", "is_encoder_decoder", "tie_encoder_decoder"),
    *("cross_attention_hidden_size", "finetuning_task", "task_specific_params", "problem_type"),
    *("id2label", "label2id", "num_labels", "classifier_dropout"),
)
# Older versions of transformers wrote the settings of generation into this file.
GENERATION = (
    *("max_length", "min_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "diversity_penalty", "num_beams"),
    *("num_beam_groups", "num_return_sequences", "early_stopping", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
    *("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
)
BOOKKEEPING = (*NAMES, *VERSIONS, *RUNNING, *TRAINING, *GENERATION)
