//! What drafts gain where a text is written again with a change: `speculation_rate MODEL [PAIRS]`.
//!
//! Method: the model is told to write a function of some 60 lines again with one name changed. The same request runs
//! with drafts and without, in turn and greedily; the prompt is in the cache, and what is timed is decoding. Before the
//! pairs come one run of each that are not counted. The texts must be equal to the byte.

use std::{error::Error, ops::ControlFlow};

use engine::{Engine, Generation, LoadOptions, ModelFile, Request, Speculation};
use serde_json::{Map, json};

const FUNCTION: &str = r#"def settle_accounts(entries, opening, rates, limits, log):
    """Book entries to their accounts, convert currencies, and report what exceeds a limit."""
    balances = dict(opening)
    rejected = []
    warnings = []
    total = 0
    for number, entry in enumerate(entries):
        account = entry.get("account")
        amount = entry.get("amount")
        currency = entry.get("currency", "EUR")
        if account is None or amount is None:
            log.write(f"entry {number}: incomplete\n")
            rejected.append((number, "incomplete"))
            continue
        if currency not in rates:
            log.write(f"entry {number}: no rate for {currency}\n")
            rejected.append((number, "currency"))
            continue
        value = amount * rates[currency]
        if entry.get("kind") == "debit":
            value = -value
        elif entry.get("kind") != "credit":
            log.write(f"entry {number}: neither debit nor credit\n")
            rejected.append((number, "kind"))
            continue
        before = balances.get(account, 0)
        after = before + value
        limit = limits.get(account)
        if limit is not None and after < -limit:
            log.write(f"entry {number}: {account} would fall to {after}\n")
            rejected.append((number, "limit"))
            continue
        if limit is not None and after < -0.9 * limit:
            warnings.append((account, after, limit))
        balances[account] = after
        total += value
        if entry.get("fee"):
            fee = entry["fee"] * rates[currency]
            balances[account] -= fee
            balances["fees"] = balances.get("fees", 0) + fee
            log.write(f"entry {number}: fee of {fee}\n")
    closed = []
    for account, value in sorted(balances.items()):
        if abs(value) < 0.005 and account not in limits:
            closed.append(account)
    for account in closed:
        del balances[account]
    summary = {
        "booked": len(entries) - len(rejected),
        "rejected": len(rejected),
        "total": round(total, 2),
        "accounts": len(balances),
        "closed": len(closed),
    }
    for account, value, limit in warnings:
        share = round(100 * -value / limit)
        log.write(f"{account}: at {share} % of its limit\n")
    if rejected:
        log.write(f"{len(rejected)} entries were rejected\n")
    return balances, rejected, summary
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("MODEL [PAIRS]")?;
    let pairs: usize = args.next().map_or(Ok(5), |pairs| pairs.parse())?;
    let file = ModelFile::open(model.as_ref())?;
    let options = LoadOptions { context: Some(4096), ..LoadOptions::default() };
    let mut engine = Engine::load(&file, &options, &mut |_, _| ())?;
    let request = edit(&engine)?;
    let mut run = |speculation| -> Result<Generation, Box<dyn Error>> {
        engine.set_speculation(speculation);
        Ok(engine.generate(&request, &mut |_| ControlFlow::Continue(()))?)
    };
    let text = run(Speculation::Off)?.text;
    run(Speculation::Ngram)?;
    println!("{text}\n\n{:>12} {:>12} {:>8} {:>20}", "without", "with", "ratio", "accepted of drafted");
    let mut ratios = Vec::new();
    for _ in 0..pairs.max(1) {
        let (without, with) = (run(Speculation::Off)?, run(Speculation::Ngram)?);
        assert_eq!(without.text, text, "the same without drafts");
        assert_eq!((&with.text, &with.ids), (&text, &without.ids), "the same with drafts");
        let [slow, fast] = [without.metrics, with.metrics].map(|metrics| metrics.decode_tok_per_s);
        let (accepted, drafted) = (with.metrics.accepted, with.metrics.drafted);
        println!("{slow:>6.1} tok/s {fast:>6.1} tok/s {:>8.2} {:>20}", fast / slow, format!("{accepted} of {drafted}"));
        ratios.push(fast / slow);
    }
    println!("median ratio {:.2}", engine::median(&ratios));
    Ok(())
}

/// The request, in the words of the model's template where it has one.
fn edit(engine: &Engine) -> Result<Request, Box<dyn Error>> {
    let task = format!(
        "Rename the variable `balances` to `ledger` in this function. Answer with the whole function and nothing else.\n\n\
         ```python\n{FUNCTION}```"
    );
    let chat = engine.can_chat()?;
    let prompt = if chat {
        let messages = [json!({"role": "user", "content": task})];
        engine.rendered(&engine.render(&messages, None, &Map::new())?)?
    } else {
        engine.prompt(&format!("{task}\n\n```python\n"))?
    };
    Ok(Request { prompt, chat, max_tokens: Some(1000), ..Request::default() })
}
