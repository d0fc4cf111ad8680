"""Deliberate mistakes in a method, each with the first output of a replay that must notice it.

A mutation is a function of pytest's `monkeypatch`; `MUTATIONS` says in which recording, one of `RECORDINGS`, it shows.
"""

import copy
import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import torch

from dasolib import losses
from dasolib import mixup as mixup_module
from dasolib.ema import EMA, ema_decay
from dasolib.methods import LEARNERS, fixmatch, mean_teacher, mixmatch, pseudo_label, remixmatch, supervised, usadtm
from dasolib.models import View, WideResNet, forward_views
from dasolib.pseudo_labels import (
    blend,
    blend_weights,
    confident_labels,
    count_classes,
    semantic_logits,
    sharpen,
)
from dasolib.rebalance import REBALANCERS, Rebalance
from dasolib.rebalance import abc as abc_module
from dasolib.rebalance import crest as crest_module
from dasolib.rebalance import daso as daso_module
from dasolib.rebalance.abc import Abc
from dasolib.rebalance.crest import Crest
from dasolib.rebalance.darp import Darp
from dasolib.rebalance.daso import Daso
from dasolib.rebalance.distribution_alignment import DistributionAlignment
from dasolib.rebalance.logit_adjustment import LogitAdjustment
from dasolib.train import Training
from tests import replay_config

ALIGNMENT = {"temperature": 0.7, "buffer_batches": 3, "eps": 1e-6}
DARP = {"warmup_steps": 1, "period": 2, "alpha": 1.5, "iterations": 2, "newton_max_iterations": 9,
        "newton_tolerance": 1e-4, "target_counts": [4.0, 5.5, 8.0, 11.0, 14.0, 18.0, 23.0, 30.0, 40.0, 5.5]}


def drop_some_unlabeled(z):
    """Let the balanced head lose every third unlabeled image, after the first step in which it keeps all."""
    for k in range(1, 5):
        z[f"step{k}/draw/auxiliary_unlabeled_keep"] = np.resize([1.0, 0.0, 1.0], 20)


# Small recordings: name -> the shipped one with the inputs, changes to its configuration, and to its arrays.
RECORDINGS = {
    "fixmatch_daso": ("fixmatch_daso", {}, None),
    "fixmatch_da": ("fixmatch_da", {}, None),
    "fixmatch_da_darp": ("fixmatch_darp", {"rebalancers": ["darp", "distribution_alignment"],
                                           "distribution_alignment": ALIGNMENT}, None),
    "fixmatch_crest_plus_la": ("fixmatch_crest_plus", {
        "rebalancers": ["crest", "distribution_alignment", "logit_adjustment"], "logit_adjustment": {"tau": 1.0},
    }, None),
    "fixmatch_abc": ("fixmatch_abc", {}, None),
    "fixmatch_daso_abc": ("fixmatch_daso_abc", {"auxiliary_balanced_classifier": {
        "iterations_per_epoch": 1, "total_epochs": 5, "use_daso_pseudo_label": True,
    }}, drop_some_unlabeled),
    "mean_teacher_daso": ("mean_teacher_daso", {}, None),
    "mixmatch_daso": ("mixmatch_daso", {}, None),
    "remixmatch_daso": ("remixmatch_daso", {}, None),
    "remixmatch_da": ("remixmatch_daso", {"rebalancers": ["distribution_alignment"], "daso": None,
                                          "distribution_alignment": ALIGNMENT}, None),
    "remixmatch_darp": ("remixmatch_daso", {
        "rebalancers": ["darp", "distribution_alignment"], "daso": None, "distribution_alignment": ALIGNMENT,
        "darp": DARP,
    }, None),
    "pseudo_label": ("pseudo_label", {}, None),
    "usadtm": ("usadtm", {"usadtm": {  # a threshold at which both criteria reject some
        "pretrain_steps": 2, "similarity_threshold": 0.8, "mutual_information_weight": 0.1,
    }}, None),
    "crt": ("supervised", {"algorithm": "crt", "rebalancers": ["classifier_retraining"], "ema_decay": 0.75,
                           "ema_weight_decay": 0.0}, None),
}


def change_configuration(**changes):
    def mutate(patch):
        ours = replay_config.config_of
        patch.setattr(replay_config, "config_of", lambda recorded: ours(recorded).model_copy(update=changes))
    mutate.__name__ = f"{changes}"
    return mutate


def replace_step(patch, method, step):
    """Let ``step(ours, net, ema, batch, rebalance, **settings)`` take the steps of a base learner."""
    learner = LEARNERS[method]
    patch.setitem(LEARNERS, method, dataclasses.replace(learner, step=functools.partial(step, learner.step)))


def without_ramp(module):
    def mutate(patch):
        patch.setattr(module, "ramp_up", lambda t, **settings: 1.0)
    mutate.__name__ = "loss_without_ramp"
    return mutate


# DASO and the moving average


def previous_semantic_labels(patch):
    """Blend with the similarities of the batch before, as a benchmark in wide use does."""
    ours, kept = Daso.refine, []

    def refine(self, labels, *seen, **settings):
        got = ours(self, labels, *seen, **settings)
        kept.append(got.semantic)
        if len(kept) < 2 or kept[-2] is None:
            return got
        return got._replace(semantic=kept[-2], final=blend(labels.final, kept[-2], self.blend_weight()))
    patch.setattr(Daso, "refine", refine)


def weight_of_the_semantic_class(patch):
    def by_semantic(linear, semantic, weight):
        weight = weight[semantic.argmax(dim=-1)].unsqueeze(-1)
        return (1 - weight) * linear + weight * semantic
    patch.setattr(daso_module, "blend", by_semantic)


def histogram_of_confident_labels_alone(patch):
    ours = Daso.end_step

    def end_step(self, labels, t):
        kept = labels.final[confident_labels(labels.final, 0.39)[1] > 0]
        ours(self, labels._replace(final=kept), t)
    patch.setattr(Daso, "end_step", end_step)


def histogram_of_linear_labels(patch):
    ours = Daso.end_step
    patch.setattr(Daso, "end_step", lambda self, labels, t: ours(self, labels._replace(final=labels.linear), t))


def histogram_renewed_a_step_early(patch):
    ours = Daso.end_step
    patch.setattr(Daso, "end_step", lambda self, labels, t: ours(self, labels, t + 1))


def histogram_that_is_never_emptied(patch):
    def end_step(self, labels, t):
        self.pending += count_classes(labels.final.argmax(dim=-1), len(self.pending))
        if (t + 1) % self.refresh_steps == 0 and t + 1 < self.total_steps:
            self.class_freq.copy_(self.pending)
    patch.setattr(Daso, "end_step", end_step)


def buffers_left_out_of_the_average(patch):
    ours = EMA.update

    def update(self, net, t, *, lr):
        kept = [buffer.clone() for buffer in self.model.buffers()]
        ours(self, net, t, lr=lr)
        for buffer, old in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(old)
    patch.setattr(EMA, "update", update)


def buffers_copied_into_the_average(patch):
    ours = EMA.update

    def update(self, net, t, *, lr):
        ours(self, net, t, lr=lr)
        for buffer, new in zip(self.model.buffers(), net.buffers(), strict=True):
            buffer.copy_(new)
    patch.setattr(EMA, "update", update)


def average_updated_with_the_decay_of_the_next_step(patch):
    patch.setattr("dasolib.ema.ema_decay", lambda t, cap: ema_decay(t + 1, cap))


def prototypes_updated_after_the_joint_pass(patch):
    """Semantic labels then come from prototypes that lack this step's labeled images."""
    ours_see, ours_extra, waiting = Daso.see_labeled, Daso.extra_losses, []
    patch.setattr(Daso, "see_labeled", lambda self, *seen: waiting.append(seen))

    def extra_losses(self, *seen):
        ours_see(self, *waiting.pop())
        return ours_extra(self, *seen)
    patch.setattr(Daso, "extra_losses", extra_losses)


def blend_by_the_power_itself(patch):
    patch.setattr(daso_module, "blend_weights", lambda freq, temperature: blend_weights(freq, 1 / temperature))


def blend_weights_that_sum_to_one(patch):
    def as_shares(freq, temperature):
        weights = blend_weights(freq, temperature)
        return weights / weights.sum()
    patch.setattr(daso_module, "blend_weights", as_shares)


def unlabeled_loss_over_confident_rows_alone(patch):
    def masked(logits, target, *, row_weight=None):
        return losses.cross_entropy(logits, target, row_weight=row_weight, denominator=row_weight.sum())
    patch.setattr(fixmatch, "cross_entropy", masked)


def views_passed_one_by_one(patch):
    def one_by_one(net, *views):
        feats = [net.features(view) for view in views]
        return [View(own, net.head(own)) for own in feats]
    patch.setattr(fixmatch, "forward_views", one_by_one)


def alignment_that_trains_the_head_alone(patch):
    ours = Daso.extra_losses
    patch.setattr(Daso, "extra_losses",
                  lambda self, net, batch, views, labels, t: ours(self, net, batch, detached(views), labels, t))


def detached(views):
    """Views whose features carry no gradient."""
    return {name: view._replace(feats=view.feats.detach()) for name, view in views.items()}


# Alignment and sharpening


def alignment_without_the_current_batch(patch):
    ours = DistributionAlignment.align

    def align(self, probs, *, update=True):
        aligned = ours(self, probs, update=False)
        ours(self, probs, update=update)
        return aligned
    patch.setattr(DistributionAlignment, "align", align)


def alignment_whose_rows_do_not_sum_to_1(patch):
    def align(self, probs, *, update=True):
        ours(self, probs, update=update)
        return probs * (self.target + 1e-6) / (self.running_mean() + 1e-6)
    ours = DistributionAlignment.align
    patch.setattr(DistributionAlignment, "align", align)


def alignment_after_sharpening(patch):
    ours = Rebalance.refine

    def refine(self, probs, *seen, temperature=1, **settings):
        return ours(self, sharpen(probs, temperature), *seen, **settings)
    patch.setattr(Rebalance, "refine", refine)


def sharpening_after_blending(patch):
    ours = Rebalance.refine

    def refine(self, probs, *seen, temperature=1, **settings):
        labels = ours(self, probs, *seen, **settings)
        return labels._replace(linear=sharpen(labels.linear, temperature), final=sharpen(labels.final, temperature))
    patch.setattr(Rebalance, "refine", refine)


def alignment_with(name):
    """Let `name` of the population be what alignment aims at, whatever the base learner."""
    def mutate(patch):
        ours = REBALANCERS["distribution_alignment"].build
        replace_part(patch, "distribution_alignment", lambda population, feat_dim, **settings: ours(
            population._replace(aligned=getattr(population, name)), feat_dim, **settings))
    mutate.__name__ = f"alignment_with_{name}_under_darp"
    return mutate


def replace_part(patch, name, build):
    patch.setitem(REBALANCERS, name, dataclasses.replace(REBALANCERS[name], build=build))


# DARP


def darp_on_labels_that_are_not_aligned(patch):
    ours = Darp.refine

    def refine(self, labels, feats, index, t, *, update=True):
        got = ours(self, labels._replace(final=labels.linear), feats, index, t, update=update)
        return got if t + 1 > self.warmup_steps else labels
    patch.setattr(Darp, "refine", refine)


def darp_that_counts_steps_from_0(patch):
    ours = Darp.refine
    patch.setattr(Darp, "refine", lambda self, labels, feats, index, t, **settings: ours(
        self, labels, feats, index, t - 1, **settings))


def darp_that_stores_nothing_in_its_warm_up(patch):
    ours = Darp.refine

    def refine(self, labels, feats, index, t, *, update=True):
        return labels if t + 1 <= self.warmup_steps else ours(self, labels, feats, index, t, update=update)
    patch.setattr(Darp, "refine", refine)


def darp_that_refines_in_every_step(patch):
    ours = Darp.refine

    def refine(self, *seen, **settings):
        self.period = 1
        return ours(self, *seen, **settings)
    patch.setattr(Darp, "refine", refine)


# CReST


def window_that_starts_afresh(patch):
    patch.setattr(Crest, "carry_over", lambda self, old: None)


def target_that_is_carried_over(patch):
    ours = Crest.carry_over

    def carry_over(self, old):
        ours(self, old)
        self.alignment.target.copy_(old.alignment.target)
    patch.setattr(Crest, "carry_over", carry_over)


def prior_without_the_selected_images(patch):
    replace_part(patch, "la", lambda population, feat_dim, la_tau: LogitAdjustment(population.labeled, tau=la_tau))


def selection_that_prefers_frequent_classes(patch):
    patch.setattr(crest_module, "selection_share",
                  lambda counts, alpha: (counts.double() / counts.max()) ** (1 / alpha))


def selection_by_the_student(patch):
    patch.setattr(Training, "evaluated", property(lambda self: self.net))


def steps_that_count_on_in_the_next_generation(patch):
    ours = Training.step

    def step(self, batch, t):
        kept, self.generation_steps = self.generation_steps, t + 1
        out = ours(self, batch, t)
        self.generation_steps = kept
        return out
    patch.setattr(Training, "step", step)


def momentum_that_outlives_a_generation(patch):
    ours = Training.__init__
    before = []

    def start(self, *arguments, **settings):
        ours(self, *arguments, **settings)
        if before:
            momentum = [before[-1].state[p]["momentum_buffer"] for p in before[-1].param_groups[0]["params"]]
            for weight, value in zip(self.optimizer.param_groups[0]["params"], momentum, strict=True):
                self.optimizer.state[weight]["momentum_buffer"] = value
        before.append(self.optimizer)
    patch.setattr(Training, "__init__", start)


# ABC


def mask_drawn_for_the_linear_class(patch):
    ours, linear = Abc.head_target, []

    def target(self, probs, labels):
        linear.append(probs.argmax(dim=-1))
        return ours(self, probs, labels)
    patch.setattr(Abc, "head_target", target)
    patch.setattr(abc_module, "confident_labels",
                  lambda probs, threshold: (linear[-1], confident_labels(probs, threshold)[1]))


def balanced_target_blended_by_the_class_of_the_other_head(patch):
    def target(self, probs, labels):
        if labels.semantic is None:
            return probs
        weight = labels.blend_weight[labels.linear.argmax(dim=-1)].unsqueeze(-1)
        return (1 - weight) * probs + weight * labels.semantic
    patch.setattr(Abc, "head_target", target)


def balanced_head_that_does_not_train_the_encoder(patch):
    ours = Abc.extra_losses
    patch.setattr(Abc, "extra_losses",
                  lambda self, net, batch, views, labels, t: ours(self, net, batch, detached(views), labels, t))


def labeled_images_kept_by_their_frequency(patch):
    ours = Abc.__init__

    def start(self, counts, **settings):
        ours(self, counts, **settings)
        self.labeled_share = counts / counts.max()
    patch.setattr(Abc, "__init__", start)


def share_that_falls_in_every_step(patch):
    patch.setattr(Abc, "unlabeled_share",
                  lambda self, t: 1 - t / self.epoch_steps / self.n_epochs * (1 - self.labeled_share))


def balanced_head_that_does_not_predict(patch):
    patch.setattr(WideResNet, "predict", lambda self, feats: self.head(feats))


# MixUp


def share_that_is_not_the_larger_one(patch):
    def mixed(x, target, beta, permutation):
        return (beta * x + (1 - beta) * x[permutation], beta * target + (1 - beta) * target[permutation])
    patch.setattr(mixup_module, "mixup", mixed)


def targets_that_are_not_mixed(patch):
    ours = mixup_module.mixup
    patch.setattr(mixup_module, "mixup",
                  lambda x, target, beta, permutation: (ours(x, target, beta, permutation)[0], target))


def mixed_batch_that_is_not_interleaved(patch):
    patch.setattr(mixup_module, "interleave", lambda rows, size: rows)


def guess_of_both_views_in_one_pass(patch):
    def together(net, *views):
        if len(views) > 1 or views[0] is not waiting[0]:
            return forward_views(net, *views)
        return forward_views(net, *waiting)[:1]
    waiting = []

    def step(ours, net, ema, batch, rebalance, **settings):
        waiting[:] = batch.views.values()
        return ours(net, ema, batch, rebalance, **settings)
    replace_step(patch, "mixmatch", step)
    patch.setattr(mixmatch, "forward_views", together)


def semantic_label_of_the_second_view(patch):
    def step(ours, net, ema, batch, rebalance, **settings):
        class Swapped:
            """Gives DASO the features of the other weak view."""

            def __getattr__(self, name):
                return getattr(rebalance, name)

            def refine(self, probs, feats, *seen, **settings):
                with torch.no_grad():
                    feats = copy.deepcopy(net).features(batch.views["weak2"])  # its own buffers stay
                return rebalance.refine(probs, feats, *seen, **settings)
        return ours(net, ema, batch, Swapped(), **settings)
    replace_step(patch, "mixmatch", step)


# ReMixMatch


def rotation_the_other_way_round(patch):
    ours = remixmatch.rotate
    patch.setattr(remixmatch, "rotate", lambda images, quarter_turns: ours(images, -quarter_turns % 4))


def loss_before_mixing_without_ramp(patch):
    def step(ours, net, ema, batch, rebalance, **settings):
        out = ours(net, ema, batch, rebalance, **settings)
        loss = settings["lambda_premixup"] * losses.cross_entropy(out.views["strong"].logits, out.labels.final)
        return out._replace(losses=out.losses | {"premixup": loss})
    replace_step(patch, "remixmatch", step)


def rotation_loss_with_ramp(patch):
    def step(ours, net, ema, batch, rebalance, **settings):
        out = ours(net, ema, batch, rebalance, **settings)
        ramp = remixmatch.ramp_up(settings["t"], length=settings["ramp_steps"], shape=settings["ramp_shape"])
        return out._replace(losses=out.losses | {"rotation": ramp * out.losses["rotation"]})
    replace_step(patch, "remixmatch", step)


def views_passed_as_without_daso(patch):
    patch.setattr(Daso, "uses_feats", False)


# Mean Teacher, Pseudo-Label, USADTM, cRT


def teacher_in_eval_mode(patch):
    def passed(net, *views):
        return forward_views(net.train(any(weight.requires_grad for weight in net.parameters())), *views)
    patch.setattr(mean_teacher, "forward_views", passed)


def squared_error_that_is_not_averaged_over_classes(patch):
    patch.setattr(mean_teacher, "squared_error", lambda probs, target: 10 * losses.squared_error(probs, target))


def student_that_passes_the_labeled_images_apart(patch):
    patch.setattr(mean_teacher, "forward_views",
                  lambda net, *views: [forward_views(net, view)[0] for view in views])


def prototypes_of_the_average(patch):
    def step(ours, net, ema, batch, rebalance, *, memory, **settings):
        class FromAverage:
            """Queues the features that the moving average gives."""

            prototypes = property(lambda self: memory.prototypes)

            def push(self, feats, target):
                with torch.no_grad():
                    memory.push(ema.model.features(batch.x), target)
        return ours(net, ema, batch, rebalance, memory=FromAverage(), **settings)
    replace_step(patch, "usadtm", step)


def labels_without_the_euclidean_criterion(patch):
    patch.setattr(usadtm, "torch", SimpleNamespace(
        cdist=lambda feats, prototypes: -semantic_logits(feats, prototypes, 1.0)))


def mutual_information_of_two_views(patch):
    patch.setattr(usadtm, "mutual_information_triplet_loss",
                  lambda identity, weak, strong: losses.mutual_information_loss(weak, strong))


def encoder_in_eval_mode(patch):
    patch.setattr(supervised, "forward_views", lambda net, *views: forward_views(net.eval(), *views))


def encoder_that_is_trained(patch):
    ours = Training.__init__

    def start(self, *arguments, **settings):
        ours(self, *arguments, **settings)
        self.net.requires_grad_(True)
    patch.setattr(Training, "__init__", start)


# Recording -> mutation -> an output of the first step, or what follows it, that is wrong then.
MUTATIONS = {
    "fixmatch_daso": {
        previous_semantic_labels: "step3/out/soft_pseudo_label",
        weight_of_the_semantic_class: "step2/out/soft_pseudo_label",
        histogram_of_confident_labels_alone: "step0/out/pseudo_labels_pending",
        histogram_of_linear_labels: "step3/out/pseudo_label_counts",
        histogram_renewed_a_step_early: "step0/out/pseudo_label_counts",
        histogram_that_is_never_emptied: "step1/out/pseudo_labels_pending",
        change_configuration(ema_train_mode=False): "step0/out/prototypes",
        change_configuration(prototypes_from="student"): "step0/out/prototypes",
        buffers_left_out_of_the_average: "step0/out/ema_l2",
        buffers_copied_into_the_average: "step1/out/ema_l2",
        average_updated_with_the_decay_of_the_next_step: "step0/out/ema_l2",
        prototypes_updated_after_the_joint_pass: "step2/out/semantic_probability",
        blend_by_the_power_itself: "step2/out/soft_pseudo_label",
        blend_weights_that_sum_to_one: "step2/out/soft_pseudo_label",
        unlabeled_loss_over_confident_rows_alone: "step0/out/unlabeled_loss",
        views_passed_one_by_one: "step0/out/logits_weak",
        alignment_that_trains_the_head_alone: "step2/out/gradient_l2",
        change_configuration(weight_decay=0.0): "step0/out/model_l2",
        change_configuration(refresh_steps=1): "step0/out/pseudo_label_counts",
    },
    "fixmatch_da": {
        alignment_without_the_current_batch: "step0/out/soft_pseudo_label",
        alignment_whose_rows_do_not_sum_to_1: "step0/out/soft_pseudo_label",
        change_configuration(alignment_window=128): "step3/out/alignment_running_mean",
        change_configuration(alignment_temperature=1.0): "step0/out/soft_pseudo_label",
    },
    "fixmatch_da_darp": {
        darp_on_labels_that_are_not_aligned: "step1/out/soft_pseudo_label",
        darp_that_counts_steps_from_0: "step1/out/soft_pseudo_label",
        darp_that_stores_nothing_in_its_warm_up: "step1/out/soft_pseudo_label",
        darp_that_refines_in_every_step: "step2/out/soft_pseudo_label",
        alignment_with("unlabeled"): "step0/out/alignment_output",
    },
    "fixmatch_crest_plus_la": {
        window_that_starts_afresh: "step2/out/alignment_running_mean",
        target_that_is_carried_over: "step2/out/alignment_output",
        prior_without_the_selected_images: "step2/out/logits_labeled",
        selection_that_prefers_frequent_classes: "generation2/selected_index",
        selection_by_the_student: "generation2/unlabeled_probability",
        steps_that_count_on_in_the_next_generation: "step2/out/ema_l2",
        momentum_that_outlives_a_generation: "step2/out/model_l2",
    },
    "fixmatch_abc": {
        balanced_head_that_does_not_train_the_encoder: "step0/out/gradient_l2",
        labeled_images_kept_by_their_frequency: "step0/out/auxiliary_labeled_loss",
        share_that_falls_in_every_step: "step0/out/auxiliary_keep_probability_per_class",
        balanced_head_that_does_not_predict: "final/ema_logits",
    },
    "fixmatch_daso_abc": {
        mask_drawn_for_the_linear_class: "step2/out/auxiliary_unlabeled_loss",
        change_configuration(abc_semantic=False): "step2/out/auxiliary_soft_pseudo_label",
        balanced_target_blended_by_the_class_of_the_other_head: "step2/out/auxiliary_soft_pseudo_label",
    },
    "mean_teacher_daso": {
        teacher_in_eval_mode: "step0/out/logits_teacher",
        student_that_passes_the_labeled_images_apart: "step0/out/logits_student",
        squared_error_that_is_not_averaged_over_classes: "step0/out/unlabeled_loss",
        without_ramp(mean_teacher): "step0/out/unlabeled_loss",
    },
    "mixmatch_daso": {
        sharpening_after_blending: "step2/out/soft_pseudo_label",
        share_that_is_not_the_larger_one: "step1/out/labeled_loss",
        targets_that_are_not_mixed: "step0/out/labeled_loss",
        mixed_batch_that_is_not_interleaved: "step0/out/logits_mixed_unlabeled",
        guess_of_both_views_in_one_pass: "step0/out/logits_weak1",
        semantic_label_of_the_second_view: "step2/out/semantic_probability",
        without_ramp(mixmatch): "step0/out/unlabeled_loss",
    },
    "remixmatch_daso": {
        rotation_the_other_way_round: "step0/out/logits_rotation",
        loss_before_mixing_without_ramp: "step0/out/premixup_loss",
        rotation_loss_with_ramp: "step0/out/rotation_loss",
        views_passed_as_without_daso: "step0/out/logits_weak",
        sharpening_after_blending: "step2/out/soft_pseudo_label",
    },
    "remixmatch_da": {
        alignment_after_sharpening: "step0/out/soft_pseudo_label",
        alignment_without_the_current_batch: "step0/out/soft_pseudo_label",
    },
    "remixmatch_darp": {
        alignment_with("labeled"): "step0/out/alignment_output",
        change_configuration(alignment_eps=1e-5): "step0/out/alignment_output",
        change_configuration(darp_iterations=1): "step1/out/darp_output",
        change_configuration(darp_newton_iterations=1): "step1/out/darp_output",
        change_configuration(darp_newton_tolerance=0.1): "step1/out/darp_output",
        change_configuration(nesterov=False): "step0/out/model_l2",
    },
    "pseudo_label": {without_ramp(pseudo_label): "step0/out/unlabeled_loss"},
    "usadtm": {
        prototypes_of_the_average: "step0/out/prototypes",
        labels_without_the_euclidean_criterion: "step2/out/mask",
        change_configuration(queue_ratio=1): "step1/out/queue_length",
        mutual_information_of_two_views: "step0/out/mutual_information_loss",
    },
    "crt": {
        encoder_in_eval_mode: "step0/out/logits_labeled",
        encoder_that_is_trained: "step0/out/gradient_l2",
    },
}
