//! One answer: streamed to stdout, stopped by Ctrl-C, summed up in a footer.

use std::{
    io::{self, IsTerminal},
    ops::ControlFlow,
};

use engine::{Engine, Event, FinishReason, Generation, Metrics, Request};

use crate::{
    interrupt::Answering,
    model::naming,
    output::{bytes, for_terminal, gb_per_s, percent_of, print},
    progress::{Bar, Unit},
};

/// What is seen of an answer while it is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    /// Its text, on stdout as it comes, and a line end after it.
    pub(crate) text: bool,
    /// A bar on stderr while a long prompt is computed.
    pub(crate) progress: bool,
}

/// Generates an answer, unless `watch` is asked to stop.
///
/// # Errors
/// What the engine reports, and what writing to stdout reports.
pub(crate) fn answer(
    engine: &mut Engine,
    request: &Request,
    watch: &Answering,
    show: Shown,
) -> anyhow::Result<Generation> {
    let terminal = io::stdout().is_terminal();
    let mut bar = Bar::new("prompt", Unit::Count, show.progress);
    let mut written = Ok(());
    let mut ends_line = false;
    let mut show_text = |text: &str| {
        ends_line = text.ends_with('\n');
        written = if terminal { print(&for_terminal(text)) } else { print(text) };
        written.is_err()
    };
    let result = engine.generate(request, &mut |event| {
        let failed = match event {
            Event::Prefill { done, total, .. } if done < total => {
                bar.at(done as u64, total as u64);
                false
            }
            Event::Prefill { .. } => {
                bar.clear();
                false
            }
            Event::Token { text, .. } => show.text && !text.is_empty() && show_text(&text),
            _ => false,
        };
        if failed || watch.stop_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(bar);
    written?;
    let generation = result.map_err(|error| naming(error, engine.file()))?;
    if show.text && !ends_line {
        print("\n")?;
    }
    Ok(generation)
}

/// What an answer cost, in two lines.
pub(crate) fn footer(generation: &Generation, context: usize) -> String {
    let metrics = &generation.metrics;
    // The buffer of the measurement is none of the model's memory, and is larger than a small model.
    let before = if metrics.read_bytes_per_s.is_some() { " before the bandwidth was measured" } else { "" };
    let memory = metrics.peak_memory_bytes.map(|peak| format!("; peak memory {}{before}", bytes(peak)));
    let memory = memory.unwrap_or_default();
    format!("{}\n{}; {}{memory}", prompt_line(metrics), decode_line(metrics), ended(generation, context))
}

/// The same in one line, for a conversation of which the context holds `len` tokens.
pub(crate) fn short_footer(metrics: &Metrics, finish: FinishReason, len: usize, context: usize) -> String {
    let mut line = format!("[{} + {} tokens{}", metrics.prompt_tokens, metrics.generated_tokens, cached(metrics));
    if metrics.generated_tokens > 0 {
        line += &format!("; first after {:.2} s", metrics.time_to_first_token_s);
    }
    if metrics.decode_tok_per_s > 0.0 {
        line += &format!("; {:.1} tok/s", metrics.decode_tok_per_s);
        if let Some(percent) = metrics.percent_of_bandwidth() {
            line += &format!(", {}", percent_of(percent, "the bandwidth"));
        }
    }
    let cut = match finish {
        FinishReason::Cancelled => "; interrupted",
        FinishReason::Length => "; cut by --max-tokens",
        FinishReason::Stop | FinishReason::Context | FinishReason::Deadline => "",
    };
    format!("{line}; context {} of {context}{cut}]", len.min(context))
}

fn prompt_line(metrics: &Metrics) -> String {
    let mut line = format!("prompt {} tokens{}", metrics.prompt_tokens, cached(metrics));
    // An answer that was broken off before the prompt was computed has neither.
    if metrics.prefill_tok_per_s > 0.0 {
        line += &format!(", {:.1} tok/s", metrics.prefill_tok_per_s);
    }
    if metrics.generated_tokens > 0 {
        line += &format!("; first token after {:.2} s", metrics.time_to_first_token_s);
    }
    line
}

/// Tokens of the prompt that were not computed again.
fn cached(metrics: &Metrics) -> String {
    if metrics.cached_tokens == 0 { String::new() } else { format!(" ({} cached)", metrics.cached_tokens) }
}

fn decode_line(metrics: &Metrics) -> String {
    let generated = format!("generated {} tokens", metrics.generated_tokens);
    // One token alone has no rate: the clock runs from the first.
    if metrics.decode_tok_per_s <= 0.0 {
        return generated;
    }
    let share = match (metrics.percent_of_bandwidth(), metrics.read_bytes_per_s) {
        (Some(percent), Some(roof)) => {
            format!(" = {}", percent_of(percent, &format!("the {} measured", gb_per_s(roof))))
        }
        _ => String::new(),
    };
    let read = gb_per_s(metrics.decode_bytes_per_s);
    format!("{generated}{}, {:.1} tok/s, {read}{share}", drafted(metrics), metrics.decode_tok_per_s)
}

/// Tokens that were drafted, and how many of them were right.
pub(crate) fn drafted(metrics: &Metrics) -> String {
    match metrics.drafted {
        0 => String::new(),
        drafted => format!(" ({} of {drafted} drafted accepted)", metrics.accepted),
    }
}

fn ended(generation: &Generation, context: usize) -> String {
    match generation.finish {
        FinishReason::Stop if generation.stopped => "ended by --stop".to_owned(),
        FinishReason::Stop => "ended by itself".to_owned(),
        FinishReason::Length => "ended by --max-tokens".to_owned(),
        FinishReason::Context => format!("cut: the context of {context} tokens is full"),
        FinishReason::Cancelled => "interrupted".to_owned(),
        FinishReason::Deadline => "its time was up".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footers_say_what_was_measured_and_no_more() {
        let metrics = Metrics {
            prompt_tokens: 35,
            cached_tokens: 12,
            generated_tokens: 64,
            drafted: 0,
            accepted: 0,
            queue_s: 0.0,
            time_to_first_token_s: 0.16,
            prefill_tok_per_s: 212.34,
            decode_tok_per_s: 88.06,
            bytes_per_token: 1e8,
            decode_bytes_per_s: 8.8e9,
            read_bytes_per_s: Some(11e9),
            peak_memory_bytes: Some(200 << 20),
        };
        let text = |metrics| {
            let (text, ids) = (String::new(), vec![]);
            footer(&Generation { text, ids, finish: FinishReason::Length, stopped: false, metrics }, 512)
        };
        assert_eq!(
            text(metrics),
            "prompt 35 tokens (12 cached), 212.3 tok/s; first token after 0.16 s\n\
             generated 64 tokens, 88.1 tok/s, 8.8 GB/s = 80 % of the 11.0 GB/s measured; ended by --max-tokens; \
             peak memory 200.0 MiB before the bandwidth was measured"
        );
        let unmeasured = Metrics { read_bytes_per_s: None, ..metrics };
        assert!(text(unmeasured).ends_with("; peak memory 200.0 MiB"), "{}", text(unmeasured));
        let single = Metrics { generated_tokens: 1, decode_tok_per_s: 0.0, ..metrics };
        assert!(text(single).contains("generated 1 tokens; ended"), "{}", text(single));
        let none = Metrics { generated_tokens: 0, ..single };
        assert!(text(none).contains("212.3 tok/s\ngenerated 0 tokens; ended"), "{}", text(none));
        let broken_off = Metrics { prefill_tok_per_s: 0.0, time_to_first_token_s: 0.0, ..none };
        assert!(text(broken_off).starts_with("prompt 35 tokens (12 cached)\ngenerated 0"), "{}", text(broken_off));
        assert_eq!(
            short_footer(&broken_off, FinishReason::Cancelled, 35, 64),
            "[35 + 0 tokens (12 cached); context 35 of 64; interrupted]"
        );
        // The last token of a full context was picked and never fed.
        let full = short_footer(&broken_off, FinishReason::Context, 65, 64);
        assert_eq!(full, "[35 + 0 tokens (12 cached); context 64 of 64]");
        let drafted = Metrics { drafted: 40, accepted: 31, ..metrics };
        assert!(text(drafted).contains("64 tokens (31 of 40 drafted accepted), 88.1"), "{}", text(drafted));
        let impossible = Metrics { decode_bytes_per_s: 12e9, ..metrics };
        assert!(text(impossible).contains("109 % of the 11.0 GB/s measured (measuring error)"), "{}", text(impossible));
    }
}
