"""Names that nanoGPT, Hugging Face and torchtitan use for our settings, for messages about unknown names."""

SHARE = "as a share of the run"

# {their name: (our name, remark)}. Our name is a field of TrainConfig or of the model's config. The remark
# says how the meaning differs.
SETTINGS: dict[str, tuple[str, str]] = {
    their: (ours, remark)
    for ours, remark, names in (
        # length and size of a step
        ("max_iters", "", "max_steps num_steps train_steps training_steps num_iterations"),
        ("max_iters", "", "iterations steps iters"),
        ("max_iters", "in steps, not in passes over the data", "epochs num_epochs num_train_epochs"),
        ("batch_size", "", "micro_batch_size per_device_train_batch_size"),
        ("batch_size", "", "device_batch_size local_batch_size"),
        ("batch_size", "which counts the rows of a micro-batch", "global_batch_size total_batch_size"),
        ("block_size", "", "seq_len seq_length sequence_length max_seq_len max_seq_length"),
        ("block_size", "", "context_length"),
        ("grad_accum", "", "gradient_accumulation_steps grad_accum_steps accumulate_grad_batches"),
        # optimization
        ("lr", "", "learning_rate max_lr peak_lr"),
        ("warmup", SHARE, "warmup_iters warmup_steps warmup_ratio lr_warmup_steps"),
        ("decay", SHARE, "lr_decay_iters decay_steps decay_ratio cooldown_steps warmdown_iters"),
        ("schedule", "which always ends at 0", "lr_scheduler lr_scheduler_type"),
        ("schedule", "which always ends at 0", "decay_lr min_lr min_lr_factor"),
        ("grad_clip", "", "max_norm max_grad_norm gradient_clip_val clip_grad_norm"),
        ("weight_decay", "", "wd"),
        ("optimizer", "", "optim optimizer_type"),
        # router
        ("balance_coef", "", "aux_loss_coef aux_loss_weight router_aux_loss_coef load_balance_coeff"),
        ("z_loss_coef", "", "z_loss router_z_loss_coef router_z_loss_weight"),
        # evaluation, checkpoints, logs
        ("eval_every", "", "eval_interval eval_steps eval_freq validation_freq val_check_interval"),
        ("eval_tokens", "", "eval_iters max_eval_steps"),
        ("eval_only", "with a checkpoint", "do_eval"),
        ("save_every", "", "save_steps save_interval checkpoint_interval ckpt_interval"),
        ("save_every", "whether or not the loss fell", "always_save_checkpoint"),
        ("keep", "", "save_total_limit keep_latest_k"),
        ("log_every", "", "log_interval logging_steps log_freq"),
        ("use_tensorboard", "", "tensorboard enable_tensorboard report_to"),
        ("use_tensorboard", "", "wandb wandb_log wandb_project wandb_run_name"),
        ("out_dir", "", "output_dir save_dir dump_folder checkpoint_dir"),
        ("resume_from", "", "resume_from_checkpoint"),
        # data, machine
        ("dataset", "", "data data_dir data_path dataset_name dataset_path"),
        ("tokenizer", "", "tokenizer_path tokenizer_name"),
        ("compile", "", "torch_compile"),
        ("dtype", "", "precision mixed_precision mixed_precision_param torch_dtype bf16 fp16"),
        ("init_from", "", "pretrained model_name_or_path initial_load_path"),
        # model
        ("num_hidden_layers", "", "n_layer n_layers num_layers depth"),
        ("num_attention_heads", "", "n_head n_heads num_heads"),
        ("num_key_value_heads", "", "n_kv_head n_kv_heads num_kv_heads n_query_groups"),
        ("hidden_size", "", "n_embd d_model dim embed_dim model_dim"),
        ("intermediate_size", "of one expert", "d_ff ffn_dim ffn_hidden_size n_inner hidden_dim"),
        ("intermediate_size", "of one expert", "moe_intermediate_size"),
        ("num_experts", "", "n_experts n_expert num_local_experts n_routed_experts"),
        ("experts_per_token", "", "top_k topk moe_top_k router_top_k"),
        ("experts_per_token", "", "num_experts_per_tok num_experts_per_token"),
        ("shared_experts", "", "n_shared_experts num_shared_experts"),
        ("router", "", "scoring_func router_type"),
        ("capacity_factor", "", "moe_capacity_factor expert_capacity"),
        ("initial_context_length", "", "max_position_embeddings n_positions n_ctx"),
        ("sliding_window", "", "window_size window"),
        ("rope_theta", "", "rope_base"),
        ("attention_bias", "", "bias use_bias qkv_bias"),
        ("tie_embeddings", "", "tie_word_embeddings weight_tying"),
        ("norm", "", "norm_type"),
        ("mlp", "", "activation hidden_act activation_function"),
        ("attention", "", "attn_implementation attn_backend flash_attention flash_attn"),
        ("dropout", "", "resid_pdrop attn_pdrop embd_pdrop attention_dropout"),
        ("dropout", "", "hidden_dropout_prob"),
    )
    for their in names.split()
}

# {(setting, value that others use): what the message adds}.
VALUES: dict[tuple[str, str], str] = {
    ("dtype", "float16"): "float16 would need loss scaling; bfloat16 does not",
    ("dtype", "fp16"): "float16 would need loss scaling; bfloat16 does not",
    ("dtype", "half"): "float16 would need loss scaling; bfloat16 does not",
    ("dtype", "bf16"): "here it is called bfloat16",
    ("dtype", "fp32"): "here it is called float32",
    ("schedule", "linear"): "wsd with warmup + decay = 1 is linear",
    ("schedule", "constant"): "wsd with decay=0 is constant",
    ("optimizer", "adam"): "here it is called adamw",
}
