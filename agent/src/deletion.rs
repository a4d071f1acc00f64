//! The end of a container: what is left of it is killed, then it is forgotten.

use alloc::format;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use linux_raw_sys::general as raw;

use crate::agent::{Agent, Answer};
use crate::container::Container;
use crate::fail::{Outcome, Step};
use crate::users;

const NEWUSER: u64 = raw::CLONE_NEWUSER as u64;

impl Agent {
    /// Kills what is left; the reply comes once nothing is.
    pub fn delete(&mut self, number: u64, id: &str) -> Outcome<Answer> {
        let index = self.index_of(id)?;
        let container = &mut self.containers[index];
        if container.deleting.is_some() {
            let message = format!("container {id:?} is being deleted already");
            return Err(Failure::worded("delete", id, errno::EBUSY, message));
        }
        container.watch_state(&self.poll).step("delete", "cgroup.events")?;
        container.cgroup.kill().step("delete", id)?;
        container.deleting = Some(number);
        let key = container.key;
        for process in self.processes.iter_mut().filter(|process| process.container == key) {
            process.hurried = true;
        }
        self.end_jobs(id);
        Ok(Answer::Other)
    }

    /// Removes containers that are to be deleted and have no process left.
    pub fn finish_deletions(&mut self) {
        let mut index = 0;
        while index < self.containers.len() {
            if self.is_deletable(index) {
                let container = self.containers.remove(index);
                self.forget(&container);
            } else {
                index += 1;
            }
        }
    }

    fn is_deletable(&self, index: usize) -> bool {
        let container = &self.containers[index];
        let mut own = self.processes.iter().filter(|process| process.container == container.key);
        container.deleting.is_some() && own.all(|process| process.told) && !container.state().0
    }

    /// Removes what is left of a container and answers its `delete`.
    pub fn forget(&mut self, container: &Container) {
        self.processes.retain(|process| process.container != container.key);
        let removed = container.cgroup.remove();
        if container.namespaces & NEWUSER != 0 {
            users::forget(&container.id);
        }
        let Some(number) = container.deleting else {
            return;
        };
        match removed {
            Ok(()) => self.reply(number, |writer| writer.nil()),
            Err(error) => {
                let failure = Failure::new("delete", &container.id, error.raw_os_error());
                self.refuse(number, &failure);
            }
        }
    }
}
