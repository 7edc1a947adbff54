"""The door to lineages of one's own model and data: any module that gives ``(batch, classes)`` scores, any batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polydistill.lineage import Generation, LineageConfig
from polydistill.modules.arguments import Arguments, Batches, MakeScheduler, sgd
from polydistill.modules.checkup import examine
from polydistill.modules.kept import distill_in_folder, distill_in_memory
from polydistill.modules.outputs import Output
from polydistill.modules.shares import join_processes
from polydistill.modules.teacher_cache import TeacherCache
from polydistill.modules.world import ModuleWorld
from polydistill.runs.checkpoint import CheckpointConfig


class ModuleDomain(ModuleWorld):
    """Generations of modules that ``build`` makes; :meth:`distill` trains them.

    A batch is ``(inputs, labels)``; ``(input, input, ..., labels)``, with the labels last; or a mapping, as Hugging
    Face has them, with the labels under "labels", whose other entries are the module's keyword arguments. What is on
    another device than the module is moved there. The module gives scores ``(batch, classes)``, an output with
    ``.logits`` or ``["logits"]``, or a tuple that begins with them. Scores may also be ``(batch, time, classes)`` with
    labels ``(batch, time)``, or ``(batch, classes, height, width)`` with labels ``(batch, height, width)``: each
    position counts as a sample. (Where there are as many positions as classes, what is which follows from the batches
    before; of a first batch a warning says how it is read.) A list of as many texts as samples is a text of each, and
    is divided with them; texts for all samples alike, as the names of classes, belong in the module, or in a mapping. A
    score belongs to the label at its own position; a causal language model needs labels that are shifted by one. Labels
    of ``batches`` may be probabilities, floats ``(batch, classes)`` or ``(batch, time, classes)``, as mixup gives them:
    of the objectives that use labels ``dkd`` alone needs the class; a row of zeros is ignored, and ``train/accuracy``
    is of the most likely class. Use autocast in the module's ``forward``; around the lineage it has no effect. Under
    torchrun the processes share each batch, see :mod:`~polydistill.modules.shares`. Of a program that connects its
    processes itself, and wraps modules in ``DistributedDataParallel``, each takes the mean over what counts in its own
    batches, and reports on its own test batches.

    **Seeds.** ``seed`` decides all that is drawn while a generation is built and trained, by torch, numpy and Python:
    initial weights, dropout, the shuffling of a ``DataLoader`` (with a generator of its own, too) and its workers. Two
    processes with one seed make the same students, and arms of one seed have the same generation 0 and the same order
    of batches, with other objectives or students too: batches draw from streams of their own. Afterwards all generators
    are as before. An iterable that draws from a generator that it keeps to itself cannot be seeded: make it a
    ``DataLoader``, or draw from torch's global one. A sampler with ``set_epoch``, as ``DistributedSampler``, is told
    the epoch, from 0 for each generation; its seed is its own.

    **Runs.** ``distill(2, run="runs/mine")`` keeps config, curves, checkpoints and weights in a folder. The same call
    again goes on where it was stopped or killed, or gives the finished generations and prints the table. On a CPU it
    ends bit for bit as the unbroken run where an epoch can be gone through again: with lists, and loaders of data sets
    with a length, whatever they draw from torch's, numpy's or Python's global generators or their own. Of iterable data
    sets, other iterables and workers that persist it is not known; a line on standard error says so.

    **Mistakes** in the arguments are errors of the constructor. To find the others, one batch of each kind goes through
    both networks and the objective before the first step.

    Args:
        build: makes a fresh module on its device; called once per generation. One that returns a
            pretrained network is trained again, as generation 0: if you have a teacher, give ``teacher``.
        batches: iterated once per epoch: a list, or a ``DataLoader``.
        test: the same, for the metrics; in the same order each time (a ``DataLoader`` that shuffles is).
        epochs: passes over ``batches`` for each generation, >= 1.
        optimizer: makes one from parameters; None: SGD with rate 0.1 and Nesterov momentum 0.9. Its rate stays,
            unless ``scheduler`` changes it.
        objective: of the students: a name in ``polydistill.losses.OBJECTIVES``, or a function of ``(student, teacher,
            labels)``, scores ``(batch, classes)`` twice and labels ``(batch,)`` (or probabilities, as they come), that
            returns a loss for each sample, ``(batch,)``. One of ``polydistill.losses`` is given what it takes.
            Generation 0 learns by cross_entropy.
        options: of the objective. Permutations cannot be fixed: the samples have no numbers here.
        classes: how many there are; needed by an objective that permutes them, as dkpp.
        seed: root of the random streams, >= 0.
        repeat: number of the student among those of one teacher, >= 0. Another number gives other initial weights and
            another order of batches, and the same generation 0: how far two students lie apart by chance alone.
        build_student: makes the modules of the students, where they are another network than generation 0; None:
            ``build`` does.
        teacher: generation 0, which is not trained then, only evaluated: a module, of which a copy is used (in the
            inputs' float type, where its own is a shorter one), or the path of a file of weights for what ``build``
            makes (``.safetensors``, or of ``torch.save(module.state_dict())``).
        log_every_steps: steps between two points of the training curves, and two checks that the loss is finite.
        device: to which every module is moved; None: it stays where it is built.
        precision: of the modules while they learn: "float32", or by autocast "bfloat16", or "float16", whose losses
            are scaled by torch's ``GradScaler``; losses and metrics are in float32 or more.
        compile: run them through ``torch.compile`` while they learn.
        parts: in which each batch is computed, one after another; their gradients add up to that of the batch, also
            where an objective normalises over it. (Batch norm sees a part.)
        clip_norm: largest Euclidean norm of a gradient, to which a larger one is scaled; None: any.
        scheduler: makes a scheduler of torch from the optimiser; None: the rate stays.
        schedule_by: "epoch": the scheduler makes a step at the end of each epoch; "step": after each batch.
        validation: batches like ``test``, on which the student is measured after each epoch; None: there are none.
        keep_best: keep the weights of the epoch that was most accurate on ``validation``, instead of the last.
        patience: with ``keep_best``: end after so many epochs that were no better; None: train all ``epochs``.
        ema: decay, as 0.999, of an exponential mean of the weights and running statistics after each step: the mean is
            what is validated, kept, measured and taught from; None: the weights that learn are.
        output: where scores are in what a network gives: an index, a key, the name of an attribute, or a function of
            it; None: see above.
        teacher_output: the same of ``teacher``; None: as ``output``.
        teacher_inputs: what ``teacher`` sees: a function of the inputs (and keywords) of a batch, on the device, which
            gives one input, a tuple of them or a mapping of keywords, as of another resolution or normalisation; None:
            what the student sees.
        teacher_cache: a folder in which each teacher's scores of ``batches`` are kept, so that it is asked once for
            each sample and not in every epoch; for inputs that repeat. Or a
            :class:`~polydistill.modules.teacher_cache.TeacherCache`, which says in which form. None: it is asked in
            each step.
        shard: under torchrun, keep the weights, gradients and optimiser states of student and teacher in pieces, one in
            each process (torch's FSDP), for what does not fit on one GPU. The weights of one block at a time are whole:
            of the modules of these classes, as ``(Block,)``, or with True of each item of the outermost ``ModuleList``
            and ``Sequential``. Files and hashes are those of the whole module. ``members`` stay in pieces. One process
            does nothing with it.
        ignore_index: label of samples (or positions) that count for nothing, in training and metrics, as padding; a
            function of one's own gets only the others, for which each batch waits for a GPU. None: each
            label must be a class.

    Attributes:
        members: generation -> module, of all that were trained or given in this process; also where an error came
            before the generation was reported, so that nothing that was trained is lost.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range; before the first step, what does not fit together in the first batches;
            while training, a label that is no class (looked at where labels are on the CPU).
        UserError: before the first step, the teacher's file is missing or does not fit.
        FloatingPointError: while training, at the next report a loss or a weight that is not finite; when evaluated,
            scores or metrics that are not.

    Example:
        >>> data = [(torch.eye(3), torch.arange(3))]
        >>> domain = ModuleDomain(lambda: nn.Linear(3, 3), data, data, epochs=50)
        >>> [generation.metrics["test_accuracy"] for generation in domain.distill(1)]
        [1.0, 1.0]
        >>> domain.ensemble([0, 1])["test_accuracy"]
        1.0
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        batches: Batches,
        test: Batches,
        *,
        epochs: int,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        objective: str | Callable[..., Tensor] = "ban",
        options: Mapping[str, Any] | None = None,
        classes: int | None = None,
        seed: int = 0,
        repeat: int = 0,
        build_student: Callable[[], nn.Module] | None = None,
        teacher: nn.Module | str | Path | None = None,
        ignore_index: int | None = -100,
        log_every_steps: int = 50,
        device: str | torch.device | None = None,
        precision: str = "float32",
        compile: bool = False,
        parts: int = 1,
        clip_norm: float | None = None,
        scheduler: MakeScheduler | None = None,
        schedule_by: Literal["epoch", "step"] = "epoch",
        validation: Batches | None = None,
        keep_best: bool = False,
        patience: int | None = None,
        ema: float | None = None,
        output: Output = None,
        teacher_output: Output = None,
        teacher_inputs: Callable[..., Any] | None = None,
        teacher_cache: str | Path | TeacherCache | None = None,
        shard: bool | type[nn.Module] | tuple[type[nn.Module], ...] = False,
    ) -> None:
        told = Arguments(
            build=build,
            batches=batches,
            test=test,
            epochs=epochs,
            optimizer=sgd if optimizer is None else optimizer,
            objective=objective,
            options=dict(options or {}),
            classes=classes,
            seed=seed,
            repeat=repeat,
            build_student=build_student,
            teacher=teacher,
            ignore_index=ignore_index,
            log_every_steps=log_every_steps,
            device=device,
            precision=precision,
            compile=compile,
            parts=parts,
            clip_norm=clip_norm,
            scheduler=scheduler,
            schedule_by=schedule_by,
            validation=validation,
            keep_best=keep_best,
            patience=patience,
            ema=ema,
            output=output,
            teacher_output=teacher_output,
            teacher_inputs=teacher_inputs,
            teacher_cache=TeacherCache(teacher_cache) if isinstance(teacher_cache, str | Path) else teacher_cache,
            shard=shard,
        )
        super().__init__(told)

    def distill(
        self,
        generations: int = 1,
        run: str | Path | None = None,
        *,
        checkpoint: CheckpointConfig | None = None,
        doctor: bool = False,
    ) -> Iterator[Generation[nn.Module]]:
        """Generations 0 to ``generations``, trained one after another while being iterated.

        Args:
            generations: students, each taught by the one before.
            run: a folder that keeps the run, see the class; None: nothing is written. Needs the extra vision.
            checkpoint: how often the run is saved; None: about once a minute.
            doctor: examine each lesson before it begins, and print the report; a wrong one does not begin.

        Raises:
            UserError: the folder holds another run, or cannot be written; the doctor finds a lesson wrong.
            Interrupted: Ctrl-C or SIGTERM, once everything is saved.
            ValueError, TypeError, FloatingPointError: see the class.
        """
        lineage = LineageConfig(generations)
        self.begin()
        self.workshop.processes = join_processes(self.given.device)
        examiner = functools.partial(examine, self.workshop) if doctor else None
        if run is None:
            return distill_in_memory(self, lineage, examiner)
        return distill_in_folder(self, lineage, Path(run), checkpoint or CheckpointConfig(), examiner)
