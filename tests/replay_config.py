"""Translate the configuration of a recorded trajectory into a `dasolib.config.Config`."""

from dasolib.config import make_config

METHODS = {"crt": "supervised"}  # where the recordings have another name
REBALANCERS = {
    "logit_adjustment": "la", "class_balanced_loss": "cb", "classifier_retraining": "crt",
    "auxiliary_balanced_classifier": "abc",
}

# Recorded section -> recorded key -> our setting; "" is outside of all sections.
SETTINGS = {
    "": {"labeled_batch_size": "batch_size", "width": "width", "confidence_threshold": "threshold",
         "unlabeled_loss_weight": "lambda_u"},
    "optimizer": {"lr": "lr", "momentum": "momentum", "nesterov": "nesterov", "weight_decay": "weight_decay"},
    "ramp_up": {"length": "ramp_steps", "shape": "ramp_shape"},
    "mixmatch": {"temperature": "sharpen_temperature", "mixup_alpha": "mixup_alpha"},
    "remixmatch": {"temperature": "sharpen_temperature", "mixup_alpha": "mixup_alpha",
                   "premixup_weight": "lambda_premixup", "rotation_weight": "lambda_rotation"},
    "usadtm": {"pretrain_steps": "pretrain_steps", "similarity_threshold": "similarity_threshold",
               "mutual_information_weight": "lambda_mi"},
    "logit_adjustment": {"tau": "la_tau"},
    "class_reweighting": {"beta": "cb_beta", "warmup_iterations": "reweight_warmup_steps",
                          "max_margin": "ldam_max_margin", "scale": "ldam_scale"},
    "distribution_alignment": {"temperature": "alignment_temperature", "buffer_batches": "alignment_window",
                               "eps": "alignment_eps"},
    "darp": {"warmup_steps": "darp_warmup_steps", "period": "darp_period", "alpha": "darp_alpha",
             "target_counts": "unlabeled_counts", "iterations": "darp_iterations",
             "newton_max_iterations": "darp_newton_iterations", "newton_tolerance": "darp_newton_tolerance"},
    "crest": {"alpha": "crest_alpha"},
    "auxiliary_balanced_classifier": {"iterations_per_epoch": "abc_epoch_steps", "total_epochs": "abc_epochs",
                                      "use_daso_pseudo_label": "abc_semantic"},
    "daso": {"pretrain_steps": "pretrain_steps", "distribution_update_period": "refresh_steps",
             "prototype_temperature": "proto_temperature", "semantic_alignment_weight": "lambda_align",
             "queue_size_per_class": "queue_size"},
}

# What the published code has no choice of, or never varies: a recording with another value is not of the same method.
CONSTANTS = {
    "optimizer": {"name": "sgd"},
    "mixmatch": {"num_augmentations": 2},
    "remixmatch": {"num_strong": 2},
}
SQUARED_ERROR = ("mean_teacher", "mixmatch")  # whose loss on unlabeled images is that; of others it is cross-entropy


def config_of(recorded):
    """Translate a recorded configuration into a `Config`.

    Raises
    ------
    ValueError
        If dasolib has no such method or setting.
    """
    for section, constants in CONSTANTS.items():
        for key, value in constants.items():
            found = (recorded.get(section) or {}).get(key)
            if found not in (None, value):  # None: recorded as not used
                raise ValueError(f"{section}.{key}={found!r}: dasolib has {value!r} there, which is no setting")
    loss = "mse" if recorded["algorithm"] in SQUARED_ERROR else "cross_entropy"
    if recorded.get("unlabeled_loss") not in (None, loss):
        raise ValueError(f"unlabeled_loss={recorded['unlabeled_loss']!r}: {recorded['algorithm']} has {loss!r} there, "
                         "which is no setting")
    if recorded.get("crest") and (recorded.get("ramp_up") or {}).get("restarts_each_generation") is False:
        raise ValueError("ramp_up.restarts_each_generation=False: it starts afresh in dasolib, which is no setting")
    changes = {}
    for section, names in SETTINGS.items():
        values = recorded.get(section) or {} if section else recorded
        changes |= {ours: values[key] for key, ours in names.items() if values.get(key) is not None}
    method = METHODS.get(recorded["algorithm"], recorded["algorithm"])
    rebalance = [REBALANCERS.get(name, name) for name in recorded["rebalancers"]]
    if recorded["ema_decay"] is not None and "crt" not in rebalance:  # the average next to cRT is no part of it
        changes |= {name: recorded[name] for name in ("ema_decay", "ema_weight_decay")}
    if daso := recorded.get("daso"):
        is_fixed = not daso["distribution_aware"] and method != "remixmatch"  # which has no fixed one as published
        if is_fixed:
            changes["fixed_blend"] = daso["fixed_blend"]
        if not is_fixed or "abc" in rebalance and changes.get("abc_semantic", True):
            changes["dist_temperature"] = daso["distribution_temperature"]
    else:
        changes.pop("abc_semantic", None)
    if sizes := (recorded.get("usadtm") or {}).get("queue_size_per_class"):
        changes["queue_ratio"] = queue_ratio(sizes, recorded["labeled_class_counts"])
    ratio = (recorded.get("unlabeled_batch_size") or 0) / recorded["labeled_batch_size"]
    if ratio and ratio % 1 == 0:  # the recorded batches are what they are
        changes["mu"] = ratio
    total_steps, generations = recorded["max_iterations"], 1
    if crest := recorded.get("crest"):
        generations = changes["n_generations"] = total_steps // crest["generation_steps"]
        if total_steps % crest["generation_steps"]:
            raise ValueError(f"max_iterations={total_steps}: no multiple of crest.generation_steps="
                             f"{crest['generation_steps']}")
        if crest["progressive_alignment"]:
            rebalance = [name for name in rebalance if name != "distribution_alignment"]
            rebalance[rebalance.index("crest")] = "crest_plus"
            changes["crest_t_min"] = crest["t_min"]
            changes.pop("alignment_temperature")  # recorded as 1, that of the first generation
    if method == "remixmatch" and "crest_plus" not in rebalance:  # its alignment is a setting, no part
        changes["alignment"] = "distribution_alignment" in rebalance
        rebalance = [name for name in rebalance if name != "distribution_alignment"]
    if "crt" in rebalance:
        changes["source"] = "recording"  # its weights are loaded from there
        changes["crt_balancing"] = "weights" if recorded.get("class_reweighting") else "batches"
    changes |= schedule_settings(recorded["schedule"], total_steps // generations)
    return make_config("paper", dataset="recording", method=method, rebalance=rebalance, total_steps=total_steps,
                       threads=1, device="cpu", channels_last=True, **changes)  # see `replay_outputs.tensor`


def queue_ratio(sizes, counts):
    """How many times as long as its class has images each queue is."""
    if sizes != [sizes[0] // counts[0] * n for n in counts]:
        raise ValueError(f"usadtm.queue_size_per_class={sizes}: no multiple of the labeled images {counts}")
    return sizes[0] // counts[0]


def schedule_settings(schedule, generation_steps):
    """Settings of the learning rate; those that change nothing are left out, as `make_config` refuses them."""
    changes = {"schedule": schedule["name"], "warmup_steps": schedule.get("warmup_iterations", 0)}
    if changes["warmup_steps"]:
        changes |= {"warmup_factor": schedule["warmup_factor"], "warmup_shape": schedule["warmup_method"]}
    if schedule["name"] == "multistep":
        changes |= {"milestones": schedule["milestones"], "lr_decay": schedule["gamma"]}
    if schedule["name"] == "cosine":
        # Ours divides by 16 and the length of a generation.
        changes["cosine_ratio"] = schedule["numerator"] * 16 / schedule["denominator"] * (
            generation_steps / schedule["length"])
    return changes
