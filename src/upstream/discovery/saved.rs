//! The last answers of sources, for a file that survives a restart: a node whose sources do not answer when it
//! starts has the origins of before.

use super::super::pool::Pool;
use super::super::pool::roster::SavedAnswer;

impl Pool {
    /// The last good answer of each source that has given one.
    pub(crate) fn saved_answers(&self) -> Vec<SavedAnswer> {
        let roster = self.roster();
        let answers = roster.sources().iter().filter_map(|record| {
            let (found, age) = (record.found.as_ref()?, record.answer_age()?);
            Some(SavedAnswer { source: record.source.to_string(), age, origins: found.to_vec() })
        });
        answers.collect()
    }

    /// Takes a saved answer as the last one of its source (blocking: members with TLS read files). False: the
    /// pool has no such source, or the source has answered already.
    pub(crate) fn restore_answer(&self, saved: &SavedAnswer) -> bool {
        let mut roster = self.roster();
        if !roster.restore_answer(saved) {
            return false;
        }
        let build = roster.build(self.settings(), [self.members().clone()]);
        self.replace_members(&mut roster, build.members);
        true
    }
}
