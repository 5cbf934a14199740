//! The variants that kernels of products have: those that are valid for a shape, and the one that is taken.

use crate::{list::Lister, tuning::Variant};

/// Subgroups of a workgroup of products with few rows, where nothing else was chosen.
pub(crate) const SUBGROUPS: u32 = 4;

/// The same where a workgroup makes its row, or joins what it has summed.
pub(crate) const PROLOGUE_SUBGROUPS: u32 = 16;

/// Rows of the weight that a subgroup takes at once, blocks of each on their way, subgroups of a workgroup, and those of
/// a processor among which all rows are divided (0: each takes its rows and ends).
pub(crate) type Rows = (u32, u32, u32, u32);

/// Subgroups of a processor that variants have.
const RESIDENT: [u32; 3] = [0, 32, 64];

/// A tile on matrix units, rows of the weight by rows of activations, and the share of a subgroup.
pub(crate) type Tile = (u32, u32, u32, u32);

/// All tiles there are.
const TILES: [Tile; 4] = [(128, 128, 64, 64), (128, 128, 64, 32), (128, 64, 32, 32), (64, 64, 32, 32)];

pub(crate) fn of_rows((rows, ahead, subgroups, resident): Rows) -> Variant {
    Variant::Rows { rows, ahead, subgroups, resident }
}

pub(crate) fn of_tile((m, n, own_m, own_n): Tile) -> Variant {
    Variant::Tile { tile: (m, n), share: (own_m, own_n) }
}

impl Lister<'_> {
    /// The variant of a product with few rows: what was chosen, else `rule`. `sums` are those of a row of the weight, of
    /// gate and up together; `joined` are the rows of a workgroup where these are given.
    pub(crate) fn rows_variant(
        &self,
        kernel: &str,
        rule: Rows,
        prologue: bool,
        joined: Option<u32>,
        sums: u32,
    ) -> Rows {
        let room = |subgroups: &u32| subgroups * self.capabilities.subgroup <= self.capabilities.workgroup;
        let few = if prologue || joined.is_some() { PROLOGUE_SUBGROUPS } else { SUBGROUPS };
        // What a workgroup does before its products it does once for all its rows.
        let lasting = prologue && self.capabilities.processors.is_some();
        let mut valid = Vec::new();
        for subgroups in [few, 2 * few].into_iter().filter(room) {
            for (rows, ahead) in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)] {
                // Sums, and blocks on their way, are registers.
                let fits = sums * rows <= 32 && (ahead == 1 || sums * rows * ahead <= 8);
                if fits && joined.is_none_or(|joined| joined == rows * subgroups) {
                    let residents = if lasting { &RESIDENT[..] } else { &RESIDENT[..1] };
                    valid.extend(residents.iter().map(|resident| of_rows((rows, ahead, subgroups, *resident))));
                }
            }
        }
        match self.tuning.choose(kernel, of_rows(rule), &valid) {
            Variant::Rows { rows, ahead, subgroups, resident } => (rows, ahead, subgroups, resident),
            Variant::Tile { .. } => unreachable!("only rows are valid here"),
        }
    }

    /// The tile of a product with many rows: what was chosen, where it fills the device with the rows there are, else the
    /// rule's, and the smallest where that has none.
    pub(crate) fn tile_variant(&self, kernel: &str, rule: Option<Tile>, fills: impl Fn(&Tile) -> bool) -> Tile {
        let rule = rule.unwrap_or(TILES[TILES.len() - 1]);
        let valid: Vec<Variant> = TILES.into_iter().filter(|tile| fills(tile)).map(of_tile).collect();
        match self.tuning.choose(kernel, of_tile(rule), &valid) {
            Variant::Tile { tile, share } => (tile.0, tile.1, share.0, share.1),
            Variant::Rows { .. } => unreachable!("only tiles are valid here"),
        }
    }
}
