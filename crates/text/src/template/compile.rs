//! A template to instructions of the engine, with a guard before each that could outrun the budget.
//!
//! The engine charges its fuel for most of what it does, but not for all (minijinja 3.1, `vm/fuel.rs` and
//! `value/ops.rs`): `+` lays out lists that were doubled thirty-three times, `~` and `==` walk a list that holds itself
//! twice forty levels deep, `*` of two literals is computed before a rendering begins. So the instructions of a
//! template are rewritten: where one takes values that it may walk or lay out, the values first pass through a function
//! of [`super::guard`], which charges for them, and come back onto the stack:
//!
//! ```text
//! Lookup a · Lookup b · Add   becomes   Lookup a · Lookup b · CallFunction(guard, 2) · UnpackList(2) · Add
//! ```

use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

use super::guard::Guard;

/// A global of value 1. What is multiplied by a variable is not computed before the rendering.
pub(super) const UNIT: &str = "__unit";

/// The longest source. Those of published models have up to 30 KB.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// The longest tag. `a + b + c` nests as deep as it is long, and the compiler looks for constants again at each level.
const MAX_TAG_TOKENS: usize = 2000;

/// Instructions of a template and of its blocks.
pub(super) struct Compiled<'s> {
    pub(super) root: Instructions<'s>,
    pub(super) blocks: BTreeMap<&'s str, Instructions<'s>>,
}

/// Compiles `source`, which [`prepared`] has made. Recursion is as deep as a tag is long, and as there are `elif`s.
pub(super) fn compile<'s>(name: &'s str, source: &'s str, syntax: &SyntaxConfig) -> Result<Compiled<'s>, Error> {
    let tree = parse(source, name, syntax.clone())?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&tree);
    let (root, blocks) = generator.finish();
    let blocks = blocks.iter().map(|(&block, code)| Ok((block, guarded(code)?))).collect::<Result<_, Error>>()?;
    Ok(Compiled { root: guarded(&root)?, blocks })
}

/// The source as it is compiled: with [`UNIT`] before what a `*` beside a bracket multiplies by, since a list literal
/// that is repeated would otherwise be laid out by the compiler, which has no budget.
///
/// # Errors
/// For a source or a tag beyond the limits.
pub(super) fn prepared(source: &str, syntax: &SyntaxConfig) -> Result<String, Error> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(refused(format!("a template of {} bytes, of at most {MAX_SOURCE_BYTES}", source.len())));
    }
    let mut output = String::with_capacity(source.len());
    let mut copied = 0;
    let mut in_tag = 0;
    // What is no token is left to the parser, which says where.
    let mut tokens = tokenize(source, false, syntax.clone()).map_while(Result::ok).peekable();
    let mut before = None;
    while let Some((token, span)) = tokens.next() {
        let after = tokens.peek().map(|(token, _)| token);
        let opens = |token: Option<&Token<'_>>| matches!(token, Some(Token::BracketOpen | Token::ParenOpen));
        let closes = |token: Option<&Token<'_>>| matches!(token, Some(Token::BracketClose | Token::ParenClose));
        if matches!(token, Token::Mul) && (closes(before.as_ref()) || opens(after)) {
            let end = span.end_offset as usize;
            output.push_str(source.get(copied..end).unwrap_or_default());
            output.push_str(UNIT);
            output.push('*');
            copied = end;
        }
        in_tag = if matches!(token, Token::VariableStart | Token::BlockStart) { 0 } else { in_tag + 1 };
        if in_tag > MAX_TAG_TOKENS {
            return Err(refused(format!(
                "a tag of more than {MAX_TAG_TOKENS} words and signs, in line {}",
                span.start_line
            )));
        }
        before = Some(token);
    }
    output.push_str(source.get(copied..).unwrap_or_default());
    Ok(output)
}

/// `code` with guards.
fn guarded<'s>(code: &Instructions<'s>) -> Result<Instructions<'s>, Error> {
    let old: Vec<&Instruction<'s>> = (0..).map_while(|at| code.get(at)).collect();
    let targets: BTreeSet<usize> = old.iter().filter_map(|i| target(i)).map(|at| at as usize).collect();
    let mut guards = Vec::with_capacity(old.len());
    for (at, instruction) in old.iter().enumerate() {
        let before = if targets.contains(&at) { None } else { at.checked_sub(1).map(|before| old[before]) };
        guards.push(guard(instruction, before)?.filter(|&(_, count)| count > 0));
    }
    // Where each instruction, or the guard before it, comes to stand.
    let mut starts: Vec<u32> = Vec::with_capacity(old.len() + 1);
    let mut next = 0;
    for guard in &guards {
        starts.push(next);
        next += if guard.is_some() { 3 } else { 1 };
    }
    starts.push(next);
    let mut new = Instructions::new(code.name(), code.source());
    for (at, instruction) in old.into_iter().enumerate() {
        let line = u16::try_from(code.get_line(at as u32).unwrap_or(0)).unwrap_or(u16::MAX);
        if let Some((guard, count)) = guards[at] {
            new.add_with_line(Instruction::CallFunction(guard.name(), Some(count)), line);
            new.add_with_line(Instruction::UnpackList(usize::from(count)), line);
        }
        new.add_with_line(moved(instruction, |to| starts.get(to as usize).copied().unwrap_or(to)), line);
    }
    Ok(new)
}

/// What guards `instruction`, and how many values it takes from the stack. `before` runs right before it, always.
fn guard(instruction: &Instruction<'_>, before: Option<&Instruction<'_>>) -> Result<Option<(Guard, u16)>, Error> {
    use Instruction as I;
    let scalar = matches!(before, Some(I::LoadConst(value)) if value.as_object().is_none());
    let items =
        |count: usize| u16::try_from(count).map_err(|_| refused("a literal of more than 65535 items".to_string()));
    let arguments = |count: &Option<u16>| count.ok_or_else(|| refused("`*` before an argument".to_string()));
    Ok(match instruction {
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::Add | I::GetItem if scalar => None,
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::CompareAndPreserve(_) => Some((Guard::Deep, 2)),
        I::StringConcat => Some((Guard::Deep, 2)),
        I::Add | I::Mul => Some((Guard::Shallow, 2)),
        I::In => Some((Guard::In, 2)),
        I::GetItem => Some((Guard::Key, 2)),
        I::SetAttr(_) => Some((Guard::Stored, 2)),
        I::Slice => Some((Guard::Shallow, 4)),
        I::PushLoop(_) | I::FastRecurse => Some((Guard::Shallow, 1)),
        I::BuildMap(pairs) => Some((Guard::Pairs, items(pairs.saturating_mul(2))?)),
        I::BuildList(Some(count)) | I::BuildTuple(Some(count)) => Some((Guard::Items, items(*count)?)),
        I::CallFunction(_, count) | I::CallObject(count) => Some((Guard::Shallow, arguments(count)?)),
        I::CallMethod(_, count) => Some((Guard::Method, arguments(count)?)),
        I::ApplyFilter(name, count, _) => Some((filter_guard(name), arguments(count)?)),
        I::MergeKwargs(_) | I::UnpackLists(_) => return Err(refused("`*` or `**` before an argument".to_string())),
        _ => None,
    })
}

/// Filters that look at the items of a list no further than tests and attributes do.
fn filter_guard(name: &str) -> Guard {
    match name {
        "length" | "count" | "list" | "first" | "last" | "default" | "d" | "reverse" | "items" | "selectattr"
        | "rejectattr" | "select" | "reject" => Guard::Filter,
        _ => Guard::Deep,
    }
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{what}: not supported"))
}

fn target(instruction: &Instruction<'_>) -> Option<u32> {
    use Instruction as I;
    match *instruction {
        I::Iterate(to) | I::Jump(to) | I::JumpIfFalse(to) | I::JumpIfFalseOrPop(to) | I::JumpIfTrueOrPop(to) => {
            Some(to)
        }
        I::BuildMacro(_, to, _) => Some(to),
        _ => None,
    }
}

fn moved<'s>(instruction: &Instruction<'s>, place: impl Fn(u32) -> u32) -> Instruction<'s> {
    use Instruction as I;
    match *instruction {
        I::Iterate(to) => I::Iterate(place(to)),
        I::Jump(to) => I::Jump(place(to)),
        I::JumpIfFalse(to) => I::JumpIfFalse(place(to)),
        I::JumpIfFalseOrPop(to) => I::JumpIfFalseOrPop(place(to)),
        I::JumpIfTrueOrPop(to) => I::JumpIfTrueOrPop(place(to)),
        I::BuildMacro(name, to, flags) => I::BuildMacro(name, place(to), flags),
        ref other => other.clone(),
    }
}
