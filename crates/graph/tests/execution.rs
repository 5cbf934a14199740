//! What an execution refuses before anything runs.

use std::sync::Arc;

use graph::{
    Execution, Graph, GraphBuilder, KV_BLOCK_TOKENS, PlanOptions, RunError, Span, Step, StepError, Weight, plan,
    reference::Reference,
};

const CONTEXT: usize = KV_BLOCK_TOKENS + 8;

fn graph() -> Graph {
    let mut b = GraphBuilder::new();
    let table = b.weight(Weight::from_f32("table", 2, 4, &[0.5; 8])).unwrap();
    let x = b.embed(table, 1.0).unwrap();
    let cache = b.cache(1, 4, None).unwrap();
    b.kv_write(cache, x, x).unwrap();
    let x = b.attention(cache, x, 1.0, None).unwrap();
    let x = b.select_outputs(x).unwrap();
    b.finish(x).unwrap()
}

fn run(execution: &mut Execution, past: usize, tokens: usize) -> Result<(), RunError> {
    let (ids, rows) = (vec![0; tokens], (0..tokens as u32).collect::<Vec<_>>());
    let tables = [vec![0, 1]];
    let spans = [Span { rows: 0..tokens, past, tables: &tables }];
    execution.run(&Step { ids: &ids, positions: &rows, spans: &spans, outputs: &[] }).map(|_| ())
}

#[test]
fn steps_beyond_the_plan_are_refused() {
    let graph = Arc::new(graph());
    let options = PlanOptions { context: Some(CONTEXT), step_tokens: 16, ..PlanOptions::default() };
    let plan = plan(&graph, &[&Reference], &options).unwrap();
    let mut execution = plan.compile(graph, &[&Reference], &mut |_, _| ()).unwrap();
    let too_large =
        |what, asked, limit| -> Result<(), RunError> { Err(StepError::TooLarge { what, asked, limit }.into()) };
    for (past, tokens, want) in [
        (0, 16, Ok(())),
        (0, 17, too_large("tokens", 17, 16)),
        (CONTEXT - 16, 16, Ok(())),
        (CONTEXT - 1, 1, Ok(())),
        // The tables have room for more: whole blocks.
        (CONTEXT - 15, 16, too_large("tokens in a sequence", CONTEXT + 1, CONTEXT)),
        (CONTEXT, 1, too_large("tokens in a sequence", CONTEXT + 1, CONTEXT)),
    ] {
        assert_eq!(run(&mut execution, past, tokens), want, "{tokens} tokens after {past}");
    }
}
