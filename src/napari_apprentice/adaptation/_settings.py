"""The numbers of a policy: what is learnt, when, and how far. Frozen, and without any knowledge of their use."""

from __future__ import annotations

from dataclasses import dataclass

from napari_apprentice.types import InputError

__all__ = ["Settings"]

_CHOICES = {
    "mid_part": ("decoder", "all"),
    "click_form": ("ce", "linear"),
    "sa_guidance": ("subset", "all"),
    "sa_regularise_to": ("initial", "accepted"),
}


@dataclass(frozen=True)
class Settings:
    """What is learnt, and when.

    The attributes of Learning from Corrections bear the paper's Greek letters: its loss is λ·(cross-entropy on the clicked pixels) +
    (1 − λ)·(cross-entropy on all pixels against the initial mask) + γ·Σ Ω (θ − θ*)².

    Attributes
    ----------
    name : as the command line calls it
    mid, post : You Point, I Learn: learn after a click; learn after a finished mask
    mid_rate, post_rate : Adam's step sizes
    mid_lasts : what clicks teach stays when their object is finished, as in the paper; else it is for that object alone
    full_error : error (1 - IoU) of the answer to the first click from which on `post_rate` counts in full; below in proportion, as
        what is right already need not be taught; 0 for in full always
    mid_part : "all" weights learn from clicks (the paper), or those of the "decoder", where the network names its encoder
    mid_again : a click is answered again by the model that has learnt from it (the paper), in place of the answer that it learnt
    mid_steps, post_rounds : steps after a click; rounds of two steps after a mask
    size : working size of the windows that are learnt from
    click_weight : weight of the click-centred Gaussian term beside dice-focal; 0 leaves it out
    click_form, click_normalised : see `losses.click_centred_gaussian`
    hard_radius_px : around every click the target says what the user said, in window pixels; 0 is the clicked pixel alone
    anchor : share of the way back to the shipped weights in every step of You Point, I Learn
    remembered : objects kept to rehearse and to judge by; and of each kind that the user names, see `_memory.kept`
    examples : how many of the newest of these the network is shown with every click. To a network that reads none they are taught
        as by ``post``
    rehearsed : of these, how many join a step
    procedural : procedural objects to rehearse and to judge by, which stand for all that the untaught model can do; 0 for none
    replay_weight : weight of what the untaught model says of them, beside the loss on accepted objects
    gate_margin : an update is refused if remembered objects lose more than this mean IoU; infinite for no gate: nothing is refused
    best_margin : it is refused as well if they fall further than this below the best that was ever reached on each of them
    source_margin : the same for procedural objects, below what the untaught model reaches on them
    plausible : a mask that the model gives at most this IoU from all its clicks has to stand out from its surroundings to be learnt from
    standing_out : at least by this share of what is usual among the remembered objects
    full_doubt : mean IoU by which the taught model has to be worse than the untaught one, on the newest accepted objects before it learnt
        from them, for all that it learnt to be let go; in part if by less. 0 for never
    ia, sa : Learning from Corrections: adapt to the object while it is clicked, and forget that after it; adapt to the sequence of objects
    ia_rate, sa_rate : Adam's step sizes
    ia_steps, sa_steps : steps after every click; steps after a finished object
    ia_lambda, sa_lambda : λ; 0 leaves the clicks out
    ia_gamma, sa_gamma : γ
    sa_guidance : "subset" (the network is shown a random part of the clicks that the loss asks for) or "all"
    sa_regularise_to : the mask of the term 1 − λ: "initial", the answer to the first click (the paper), or "accepted"
    practice : so many steps between two lessons the network practises on what is remembered (see `_practice`); 0 for not at all
    practice_rate, practice_batch : Adam's step size, and samples a step
    practice_procedural : share of the samples that are procedural
    extents : learn how large the accepted objects are, whatever else is learnt from them

    Raises
    ------
    InputError : an unknown choice, or two ways to learn from a click at once
    """

    name: str
    mid: bool = False
    post: bool = False
    mid_rate: float = 2e-5
    mid_lasts: bool = False
    post_rate: float = 1e-4
    full_error: float = 0.3
    mid_part: str = "decoder"
    mid_again: bool = False
    mid_steps: int = 1
    post_rounds: int = 5
    size: int = 128
    click_weight: float = 0.2
    click_form: str = "ce"
    click_normalised: bool = True
    hard_radius_px: float = 3.0
    anchor: float = 2e-3
    remembered: int = 8
    examples: int = 0
    rehearsed: int = 1
    procedural: int = 0
    replay_weight: float = 1.0
    gate_margin: float = 0.01
    best_margin: float = 0.03
    source_margin: float = 0.02
    plausible: float = 0.6
    standing_out: float = 0.5
    full_doubt: float = 0.1
    ia: bool = False
    sa: bool = False
    ia_rate: float = 3e-5
    sa_rate: float = 1e-4
    ia_steps: int = 10
    sa_steps: int = 1
    ia_lambda: float = 1.0
    sa_lambda: float = 0.5
    ia_gamma: float = 1.0
    sa_gamma: float = 2.0
    sa_guidance: str = "subset"
    sa_regularise_to: str = "initial"
    practice: int = 0
    practice_rate: float = 5e-4
    practice_batch: int = 8
    practice_procedural: float = 0.25
    extents: bool = True

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} = {value!r} arrived; expected one of {', '.join(choices)}")
        if self.ia and self.mid:
            raise InputError("a policy with both ia and mid arrived; expected one of them, as both learn from every click")

    @property
    def learns_for_object(self) -> bool:
        """Whether what clicks teach is forgotten when their object is finished."""
        return self.ia or (self.mid and not self.mid_lasts)
