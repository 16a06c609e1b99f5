//! What is written to the client at once, on its way through the chain.

use pingora::protocols::http::HttpTask;

/// Tasks that become others, in place: nearly always as many, and in the same order.
pub(super) struct Batch {
    tasks: Vec<HttpTask>,
    /// So many, from the first, have been through the chain; what is between them and `next` was taken.
    through: usize,
    next: usize,
}

impl Batch {
    pub(super) fn new(tasks: Vec<HttpTask>) -> Self {
        Self { tasks, through: 0, next: 0 }
    }

    /// The next one that is to go through the chain.
    pub(super) fn take(&mut self) -> Option<HttpTask> {
        let task = self.tasks.get_mut(self.next)?;
        self.next += 1;
        Some(std::mem::replace(task, HttpTask::Done))
    }

    /// One that has been through.
    pub(super) fn push(&mut self, task: HttpTask) {
        if self.through == self.next {
            self.tasks.insert(self.through, task); // More come out than have gone in.
            self.next += 1;
        } else {
            self.tasks[self.through] = task;
        }
        self.through += 1;
    }

    /// All that have been through. Those that have not are of no interest any more.
    pub(super) fn finish(mut self) -> Vec<HttpTask> {
        self.tasks.truncate(self.through);
        self.tasks
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn body(number: u8) -> HttpTask {
        HttpTask::Body(Some(Bytes::copy_from_slice(&[number])), false)
    }

    fn numbers(tasks: &[HttpTask]) -> Vec<u8> {
        tasks.iter().map(|task| if let HttpTask::Body(Some(data), false) = task { data[0] } else { 0 }).collect()
    }

    /// Each of three tasks becomes as many as it says, and what has not been taken is left out.
    #[test]
    fn tasks_become_any_number_of_others_in_order() {
        for taken in 0..=3 {
            for becomes in [[1, 1, 1], [0, 2, 1], [2, 0, 0], [0, 0, 3], [3, 3, 3], [0, 0, 0]] {
                let mut batch = Batch::new((1..=3).map(body).collect());
                let mut expected = Vec::new();
                for count in &becomes[..taken] {
                    let task = batch.take().unwrap();
                    let number = numbers(&[task])[0];
                    for copy in 0..*count {
                        batch.push(body(number * 10 + copy));
                        expected.push(number * 10 + copy);
                    }
                }
                assert_eq!(batch.take().is_some(), taken < 3);
                assert_eq!(numbers(&batch.finish()), expected, "{becomes:?} {taken}");
            }
        }
    }
}
