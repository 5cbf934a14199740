//! The variants that kernels of products have: those that are valid for a shape, and the one that is taken.

use crate::{list::Lister, tuning::Variant};

/// Subgroups of a workgroup of products with few rows, where nothing else was chosen.
const SUBGROUPS: u32 = 4;

/// Rows of the weight that a subgroup takes, blocks that it loads ahead, and subgroups of a workgroup.
pub(crate) type Rows = (u32, u32, u32);

/// A tile on matrix units, rows of the weight by rows of activations, and the share of a subgroup.
pub(crate) type Tile = (u32, u32, u32, u32);

/// All tiles there are.
const TILES: [Tile; 4] = [(128, 128, 64, 64), (128, 128, 64, 32), (128, 64, 32, 32), (64, 64, 32, 32)];

pub(crate) fn of_rows((rows, ahead, subgroups): Rows) -> Variant {
    Variant::Rows { rows, ahead, subgroups }
}

pub(crate) fn of_tile((m, n, own_m, own_n): Tile) -> Variant {
    Variant::Tile { tile: (m, n), share: (own_m, own_n) }
}

impl Lister<'_> {
    /// The variant of a product with few rows: what was chosen, else `rule` (rows, blocks ahead). `sums` are those of a
    /// row of the weight, of gate and up together; `fixed` the subgroups where they are given.
    pub(crate) fn rows_variant(&self, kernel: &str, rule: (u32, u32), fixed: Option<u32>, sums: u32) -> Rows {
        let rule = (rule.0, rule.1, fixed.unwrap_or(SUBGROUPS));
        let room = |subgroups: &u32| subgroups * self.capabilities.subgroup <= self.capabilities.workgroup;
        let subgroups = fixed.map_or(vec![SUBGROUPS, 2 * SUBGROUPS], |fixed| vec![fixed]);
        let mut valid = Vec::new();
        for subgroups in subgroups.into_iter().filter(room) {
            for (rows, ahead) in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)] {
                // Sums, and blocks on their way, are registers.
                if sums * rows <= 32 && (ahead == 1 || sums * rows * ahead <= 8) {
                    valid.push(of_rows((rows, ahead, subgroups)));
                }
            }
        }
        match self.tuning.choose(kernel, of_rows(rule), &valid) {
            Variant::Rows { rows, ahead, subgroups } => (rows, ahead, subgroups),
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
