//! Puts the request header `x-enqueue`, one item per word, into a queue; and takes items from a queue, as it is told of them, into shared
//! data. Configuration: `<queue to take from, or -> <vm_id of the queue to put into, or - for the own> <its name>`.

#![allow(clippy::panic, reason = "a guest that fails the test, or is to trap")]

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, Status};

const _: () = {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(Queue::default()));
    }}
};

#[derive(Default, Clone)]
struct Queue {
    target: Rc<(String, String)>,
    taken: Option<u32>,
    answer: String,
}

impl Context for Queue {}

impl RootContext for Queue {
    fn on_configure(&mut self, _size: usize) -> bool {
        let config = selvedge_test_guests::configuration(self);
        let words: Vec<&str> = config.split_whitespace().collect();
        let [from, vm_id, name] = words[..] else { return false };
        self.taken = (from != "-").then(|| self.register_shared_queue(from));
        self.target = Rc::new((vm_id.trim_matches('-').to_owned(), name.to_owned()));
        true
    }

    fn on_queue_ready(&mut self, queue: u32) {
        assert_eq!(Some(queue), self.taken, "told of a queue of its own");
        let item = match self.dequeue_shared_queue(queue) {
            Ok(Some(item)) => item,
            Ok(None) => Vec::new(),
            Err(status) => panic!("a queue of its own: {status:?}"),
        };
        if item == b"die" {
            panic!("as asked");
        }
        if item == b"again" {
            let _ = self.enqueue_shared_queue(queue, Some(b"again"));
        }
        // Another VM may be at it: the one that was told before this one registered.
        loop {
            let (seen, version) = self.get_shared_data("seen");
            let mut seen = seen.unwrap_or_default();
            seen.extend_from_slice(&item);
            seen.push(b' ');
            let kept = &seen[seen.len().saturating_sub(1000)..];
            match self.set_shared_data("seen", Some(kept), version) {
                Err(Status::CasMismatch) => {}
                _ => return,
            }
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(self.clone()))
    }
}

impl HttpContext for Queue {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let (vm_id, name) = &*self.target;
        let answers = self.get_http_request_header("x-enqueue").into_iter().flat_map(|items| {
            let enqueue = |item: &str| match self.resolve_shared_queue(vm_id, name) {
                None => "no-queue",
                Some(queue) => match self.enqueue_shared_queue(queue, Some(item.as_bytes())) {
                    Ok(()) => "ok",
                    Err(Status::NotFound) => "full",
                    Err(_) => "other",
                },
            };
            items.split_whitespace().map(enqueue).collect::<Vec<_>>()
        });
        self.answer = answers.collect::<Vec<_>>().join(" ");
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        let (seen, _) = self.get_shared_data("seen");
        let seen = seen.and_then(|seen| String::from_utf8(seen).ok()).unwrap_or_default();
        self.add_http_response_header("x-seen", seen.trim_end());
        self.add_http_response_header("x-enqueued", &self.answer);
        Action::Continue
    }
}
