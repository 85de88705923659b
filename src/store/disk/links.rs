//! Links forms to their sources as they are written, see [`super::super::linked_forms`].

use super::super::blocks::{Blocks, EntryRead};
use super::super::piece::Piece;
use super::super::piece_key::PieceKey;
use super::super::record::{Record, StoredHead};

/// Notes in a form the entry of its source, before the form is written. Blocks for I/O.
pub(super) fn link(blocks: &Blocks, form: &StoredHead) {
    if let Some(mark) = &form.response.form {
        mark.source_entry.set(entry_of_source(blocks, form).unwrap_or_default());
    }
}

/// The number of the newest entry of the form's source, if that is the response which the form was made from.
fn entry_of_source(blocks: &Blocks, form: &StoredHead) -> Option<u64> {
    let key = PieceKey::head(form.response.source_hash());
    let location = blocks.locate(key.index_hash())?;
    // Before the read: if the block is overwritten meanwhile, this is the number of the entry that was there before.
    let number = blocks.number_at(location);
    let EntryRead::Found(found, value) = blocks.read(location).ok()? else { return None };
    let Piece::Record(Record::Response(source)) = Piece::decode(value) else { return None };
    (found == key && form.can_be_linked_to(&source)).then_some(number)
}
