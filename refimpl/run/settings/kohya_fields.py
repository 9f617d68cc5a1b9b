"""Names of the fields of kohya's sd-scripts: those that tell its files, and those that have no equivalent."""

MARKERS = frozenset((
    "pretrained_model_name_or_path", "train_data_dir", "in_json", "dataset_config", "train_batch_size", "datasets",
    "max_train_steps", "max_train_epochs", "network_module", "network_dim", "optimizer_type", "lr_scheduler",
    "mixed_precision", "output_name", "gradient_accumulation_steps", "image_dir", "num_repeats", "enable_bucket",
    "save_model_as", "cache_latents", "unet_lr", "clip_skip",
))  # fmt: skip
"""Fields by which a configuration is recognised: none of them is a setting of refimpl."""

TELLING = frozenset((
    "pretrained_model_name_or_path", "train_data_dir", "in_json", "dataset_config", "train_batch_size",
    "max_train_steps", "max_train_epochs", "network_module", "network_dim", "image_dir", "unet_lr",
))  # fmt: skip
"""Those of them that sd-scripts alone has, so that one is enough."""

WITHOUT = frozenset((
    "adaptive_noise_scale", "alpha_mask", "async_upload", "base_weights", "base_weights_multiplier",
    "block_lr", "blocks_to_swap", "caption_dropout_every_n_epochs", "clip_skip", "config_file",
    "console_log_file", "console_log_level", "console_log_simple", "cpu_offload_checkpointing",
    "dataset_class", "ddp_gradient_as_bucket_view", "ddp_static_graph", "ddp_timeout",
    "debiased_estimation_loss", "debug_dataset", "deepspeed", "dim_from_weights",
    "disable_mmap_load_safetensors", "dynamo_backend", "fp16_master_weights_and_gradients", "fp8_base",
    "fp8_base_unet", "full_fp16", "fused_optimizer_groups", "highvram",
    "huber_c", "huber_scale", "huber_schedule", "huggingface_path_in_repo", "huggingface_repo_type",
    "huggingface_repo_visibility", "huggingface_token", "initial_epoch", "initial_step", "ip_noise_gamma",
    "ip_noise_gamma_random_strength", "log_config", "log_prefix", "log_tracker_config", "logging_dir",
    "logit_mean", "logit_std", "lowram", "lr_decay_steps", "lr_scheduler_args", "lr_scheduler_min_lr_ratio",
    "lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_timescale", "lr_scheduler_type",
    "masked_loss", "max_validation_steps", "metadata_author", "metadata_description",
    "metadata_is_negative_embedding", "metadata_license", "metadata_merged_from", "metadata_preprocessor",
    "metadata_tags", "metadata_thumbnail", "metadata_title", "metadata_trigger_phrase", "metadata_usage_hint",
    "mode_scale", "multires_noise_discount", "multires_noise_iterations", "network_dropout", "no_metadata",
    "noise_offset_random_strength", "offload_optimizer_device", "offload_optimizer_nvme_path",
    "offload_param_device", "offload_param_nvme_path", "optimizer_schedulefree_wrapper", "output_config",
    "perlin_noise", "prior_loss_weight", "resume_from_huggingface", "sample_at_first",
    "sample_every_n_epochs", "sample_sampler", "save_every_n_epochs", "save_last_n_epochs",
    "save_last_n_epochs_state", "save_last_n_steps", "save_last_n_steps_state", "save_n_epoch_ratio",
    "save_state", "save_state_on_train_end", "save_state_to_huggingface", "scale_v_pred_loss_like_noise_pred",
    "scale_weight_norms", "schedulefree_wrapper_args", "skip_cache_check", "skip_until_initial_step",
    "text_encoder_batch_size", "tokenizer_cache_dir", "training_comment",
    "use_lion_optimizer", "use_safetensors", "v2", "v_pred_like_loss", "vae_batch_size",
    "validate_every_n_epochs", "validation_seed", "wandb_api_key", "wandb_run_name", "weighted_captions",
    "weighting_scheme", "zero3_init_flag", "zero3_save_16bit_model", "zero_stage",
))  # fmt: skip
"""Fields that refimpl has nothing for, beside those that have a reason of their own."""
