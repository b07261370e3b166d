"""How decisions are shown: as a row, whole, beside their replay; for people and as JSON."""

from typing import TYPE_CHECKING, Any

from app.cli import output

if TYPE_CHECKING:
    from app.decisions.forget import Plan, Remains
    from app.decisions.history import Found
    from app.decisions.progress import Progressed
    from app.decisions.record import DecisionRecord, EffectRecord, ModelUse
    from app.decisions.replay import Replayed, Summary
    from app.serving.base import Features

COLUMNS = ("place", "written", "agent", "alert", "entity", "action", "effects", "risk", "why", "mode")
WHOLE_COLUMNS = tuple(name for name in COLUMNS if name not in ("effects", "why"))
SPARE_COLUMNS = ("mode", "risk", "entity", "agent", "why", "written")
"""In which order they are left out where a terminal is narrow."""

REPLAYED_COLUMNS = ("place", "agent", "alert", "action", "differences", "shown otherwise")


def listed(one: "Progressed") -> dict[str, Any]:
    """A decision in short, as JSON."""
    found, states = one
    record, decision = found.record, found.decision
    return {
        "place": found.place,
        "written_ms": found.written_ms,
        "agent": record.agent,
        "alert_id": record.alert_id,
        "entity": record.entity,
        "mode": record.mode,
        "action": decision.get("action"),
        "risk_level": decision.get("risk_level"),
        "reason": decision.get("reason"),
        "reasons": record.reasons,
        "effects": states,
        "model": record.models[-1].model if record.models else None,
        "attempt": record.attempt,
    }


def row(one: "Progressed", now_ms: int | None) -> tuple[Any, ...]:
    """A decision as a row of `COLUMNS`. now_ms: where the time may be short, else None."""
    from app.core.text import one_line

    found, states = one
    record, decision = found.record, found.decision
    why = ", ".join(record.reasons) or one_line(decision.get("reason", ""), 60)
    return (
        found.place,
        moment(found.written_ms) if now_ms is None else short_moment(found.written_ms, now_ms),
        record.agent,
        record.alert_id,
        record.entity,
        decision.get("action"),
        ", ".join(states),
        decision.get("risk_level"),
        why,
        record.mode,
    )


def whole(
    found: "Found", stands: "Found | None", effects: "EffectRecord | None", intended: list[str] | None
) -> dict[str, Any]:
    """Everything on record about one decision, as JSON. intended: see `show`."""
    return {
        "place": found.place,
        "written_ms": found.written_ms,
        "sha256": found.sha256,
        "stands": stands is not None and stands.place == found.place,
        "standing": stands.place if stands is not None else None,
        "record": found.record,
        "effects": effects,
        "not_begun": intended,
    }


def show(found: "Found", stands: "Found | None", effects: "EffectRecord | None", intended: list[str] | None) -> None:
    """Everything on record about one decision, for a person. intended: what will be done, as far as that is known, where
    the decision stands and its effects are not on record yet."""
    record, decision = found.record, found.decision
    is_standing = stands is not None and stands.place == found.place
    _say("decision", f"{found.place}, written {moment(found.written_ms)}, {record.mode}, attempt {record.attempt}")
    _say("stands", "yes" if is_standing else f"no, {stands.place} does" if stands is not None else "none does")
    _say("agent", record.agent)
    place = f"{record.alert_topic}/{record.alert_partition}/{record.alert_offset}"
    _say("alert", f"{record.alert_id} ({record.alert_type}) at {place}, from {record.origin or 'an unknown event'}")
    _say("", bytes(record.alert).decode(errors="replace"))
    _say("entity", record.entity)
    _say("action", f"{decision.get('action')}, risk {decision.get('risk_level')}")
    _say("reason", str(decision.get("reason")))
    further = {name: value for name, value in decision.items() if name not in ("action", "risk_level", "reason")}
    for name, value in further.items():
        _say("", f"{name}: {value}")
    _say("codes", ", ".join(record.reasons) or "none")
    if record.policy is not None:
        changed = f"{record.policy.answered} to {record.policy.action}"
        _say("policy", f"{changed}, because of {', '.join(record.policy.reasons) or 'nothing that it names'}")
    else:
        _say(
            "policy",
            "left the answer as it was" if bytes(record.answered) != b"null" else "left the fallback as it was",
        )
    for features in record.features:
        _show_features(features)
    for use in record.models:
        _show_model(use)
    if not is_standing:
        nobody = record.mode != "live"
        _say(
            "effects", f"none: nobody acts on what is {record.mode}" if nobody else "none: this decision does not stand"
        )
    elif effects is None:
        _say("effects", _not_begun(intended))
    else:
        _show_effects(effects)
    _show_hops(record)
    _say("chain", f"{record.writer} {record.number}, sha256 {found.sha256}")


def _show_features(features: "Features") -> None:
    from decimal import Decimal

    values = ", ".join(
        f"{name} {f'${value:,.2f}' if isinstance(value, Decimal) else f'{value:,}'}"
        for name, value in features.values.items()
    )
    age = (
        f"complete up to {features.age_ms:,} ms before" if features.as_of_ms else "nobody had said up to when complete"
    )
    _say("features", f"{features.view} of {features.entity}: {values}")
    _say("", f"{features.freshness.value}, {age}; own event {features.own_event.value}")


def _show_model(use: "ModelUse") -> None:
    said = f"{use.stop_reason} after {use.model_ms:,} ms" if use.answer is not None else "no answer"
    tokens = (
        f"{use.input_tokens + use.cache_read_tokens + use.cache_write_tokens:,} tokens in, {use.output_tokens:,} out"
    )
    _say("model", f"{use.model}: {said}; {tokens}{f'; failed: {use.failure}' if use.failure else ''}")
    _say("prompt", f"sha256 {use.prompt_sha256}")
    _say("context", use.context or "not kept")
    if use.answer is not None:
        kept = "" if len(use.answer.text.encode()) >= use.answer.bytes else f" … ({use.answer.bytes:,} bytes in all)"
        _say("answer", f"{use.answer.text}{kept}")


def _not_begun(intended: list[str] | None) -> str:
    if intended is None:
        return "not begun yet; the application that -A names does not say which there are"
    return f"not begun yet: {', '.join(intended) or 'none are declared for this action'}"


def _show_effects(effects: "EffectRecord") -> None:
    if not effects.effects:
        _say("effects", "none are declared for this action")
    for name, status in effects.effects.items():
        detail = f": {status.detail}" if status.detail else ""
        _say("effect", f"{name} {status.state.value} at {moment(status.at_ms)} ({status.receiver}){detail}")


def _show_hops(record: "DecisionRecord") -> None:
    from app.decisions.record import HOPS

    _say("event", moment(record.hops.event_ms) if record.hops.event_ms else "at an unknown time")
    for name, before, after in HOPS:
        began, ended = getattr(record.hops, before), getattr(record.hops, after)
        if began and ended:
            _say("", f"{name}: {ended - began:,} ms")


def replayed(one: "Replayed") -> dict[str, Any]:
    """One replayed decision, as JSON."""
    return {
        "place": one.found.place,
        "agent": one.found.record.agent,
        "alert_id": one.found.record.alert_id,
        "recorded": one.before,
        "replayed": one.action,
        "identical": not one.skipped and not one.differences,
        "differences": one.differences,
        "changed": one.changed,
        "skipped": one.skipped or None,
    }


def replayed_row(one: "Replayed") -> tuple[str, ...]:
    """One replayed decision as a row of `REPLAYED_COLUMNS`."""
    record = one.found.record
    action = f"{one.before} -> {one.action or 'nothing'}"
    return one.found.place, record.agent, record.alert_id, action, "; ".join(one.differences), ", ".join(one.changed)


def summed_up(summary: "Summary", model: str | None, prices: str) -> dict[str, Any]:
    """A replay as a whole, as JSON. usd: None where there is no other model, or its price is not known."""
    return {
        "replayed": summary.replayed,
        "identical": summary.identical,
        "different": summary.different,
        "actions": {f"{before} -> {now}": count for (before, now), count in sorted(summary.actions.items())},
        "changed": dict(summary.changed),
        "skipped": dict(summary.skipped),
        "model": model,
        "calls": summary.calls,
        "input_tokens": summary.input_tokens,
        "output_tokens": summary.output_tokens,
        "cache_read_tokens": summary.cache_read_tokens,
        "cache_write_tokens": summary.cache_write_tokens,
        "usd": _usd(summary, model, prices),
    }


def sum_up(summary: "Summary", model: str | None, prices: str) -> None:
    """A replay as a whole, for a person."""
    for (before, now), count in sorted(summary.actions.items()):
        output.line(f"{before} -> {now}: {count:,}")
    for what, count in summary.changed.items():
        output.line(f"{what}: {count:,}")
    for why, count in summary.skipped.items():
        output.line(f"not replayed, {why}: {count:,}")
    if model is not None:
        usd = _usd(summary, model, prices)
        tokens = (summary.input_tokens, summary.cache_read_tokens, summary.cache_write_tokens)
        cost = f"${usd}" if usd is not None else f"at a price that is not known (setting model_prices, {model}=…)"
        output.line(
            f"{model}: {summary.calls:,} calls, {sum(tokens):,} tokens in, {summary.output_tokens:,} out, {cost}"
        )
    output.line(
        f"{output.counted(summary.replayed, 'decision')}: {summary.identical:,} identical, {summary.different:,} different"
    )


def _usd(summary: "Summary", model: str | None, prices: str) -> str | None:
    from decimal import Decimal

    from app.models.base import Usage
    from app.models.pricing import parse_prices

    price = parse_prices(prices).get(model) if model is not None else None
    if price is None:
        return None
    usage = Usage(summary.input_tokens, summary.output_tokens, summary.cache_read_tokens, summary.cache_write_tokens)
    return f"{Decimal(price.cost(usage)).scaleb(-6):.6f}"


def forgotten(
    plan: "Plan", remains: "list[Remains]", final: dict[str, int | None], *, removed: bool, stores: int
) -> dict[str, Any]:
    """What forgetting came to, as JSON. final_ms: how long after now the old bytes may lie, by topic."""
    return {
        "entity": plan.entity,
        "removed": removed,
        "waits": plan.waits,
        "records": {topic: plan.count(topic) for topic in sorted({write.topic for write in plan.writes})},
        "stores": stores,
        "awaiting_compaction": plan.awaiting,
        "final_ms": final,
        "remains": {one.topic: one.retention_ms for one in remains},
    }


def say_planned(plan: "Plan") -> None:
    """What will be removed, before it is asked for."""
    topics = sorted({write.topic for write in plan.writes})
    found = ", ".join(f"{plan.count(topic):,} of {topic}" for topic in topics)
    output.note(f"{plan.entity}: {found or 'no records'}, and what the feature store holds")


def say_forgotten(
    plan: "Plan", remains: "list[Remains]", final: dict[str, int | None], *, removed: bool, stores: int
) -> None:
    """What forgetting came to, for a person."""
    from app.core.durations import format_duration

    verb = "removed" if removed else "would remove"
    for topic in sorted({write.topic for write in plan.writes}):
        bound = final.get(topic)
        when = (
            f"within {format_duration(bound)}, once something is written behind it" if bound else "at an unknown time"
        )
        output.line(
            f"{verb} {output.counted(plan.count(topic), 'record')} of {topic}; compaction makes it final {when}"
        )
    if not plan.writes:
        output.line(f"no records about {plan.entity} are left to remove")
    if removed:
        output.line(f"removed from the feature store: {output.counted(stores, 'view')}")
    if plan.awaiting:
        output.line(f"replaced before, and waiting for compaction: {output.counted(plan.awaiting, 'decision')}")
    for one in remains:
        kept = "until its windows close"
        if one.is_left:
            kept = "until it is deleted with: python -m app streams prune"
        elif one.retention_ms:
            kept = f"for {format_duration(one.retention_ms)} after each was written"
        output.line(f"may still name it, {kept}: {one.topic}")
    for wait in plan.waits:
        output.error(f"must be waited for: {wait}")
    if plan.waits:
        output.note("nothing was removed; try again later")


def moment(time_ms: int) -> str:
    """`2026-11-25T08:00:00.123Z`."""
    from app.core.instants import instant

    return instant(time_ms).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time_ms % 1000:03d}Z"


def short_moment(time_ms: int, now_ms: int) -> str:
    """`08:00:00` of today, `11-24 08:00` of another day, UTC."""
    from app.core.instants import instant

    is_today = instant(time_ms).date() == instant(now_ms).date()
    return instant(time_ms).strftime("%H:%M:%S" if is_today else "%m-%d %H:%M")


def _say(name: str, text: str) -> None:
    output.line(f"{name:<9} {text}")
