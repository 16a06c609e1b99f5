//! What a session that stands before the client's does as that one does. Pingora's trait for sessions has some forty methods, most of which
//! have nothing to do with why there is another session.

/// The methods of Pingora's custom session that a wrapper passes on, to `self.real()` and `self.real_mut()`; and those for messages of a
/// protocol of its own, of which there are none: Pingora asks for them on both sides where the upstream's session is ours, too, which
/// `self.is_attempt()` knows.
macro_rules! as_the_clients_own {
    () => {
        fn set_read_timeout(&mut self, timeout: Option<std::time::Duration>) {
            self.real_mut().set_read_timeout(timeout);
        }

        fn get_read_timeout(&self) -> Option<std::time::Duration> {
            self.real().get_read_timeout()
        }

        fn set_write_timeout(&mut self, timeout: Option<std::time::Duration>) {
            self.real_mut().set_write_timeout(timeout);
        }

        fn get_write_timeout(&self) -> Option<std::time::Duration> {
            self.real().get_write_timeout()
        }

        fn set_total_drain_timeout(&mut self, timeout: Option<std::time::Duration>) {
            self.real_mut().set_total_drain_timeout(timeout);
        }

        fn get_total_drain_timeout(&self) -> Option<std::time::Duration> {
            self.real().get_total_drain_timeout()
        }

        fn request_summary(&self) -> String {
            self.real().request_summary()
        }

        fn response_written(&self) -> Option<&pingora::http::ResponseHeader> {
            self.real().response_written()
        }

        fn body_bytes_sent(&self) -> usize {
            self.real().body_bytes_sent()
        }

        fn body_bytes_read(&self) -> usize {
            self.real().body_bytes_read()
        }

        fn digest(&self) -> Option<&pingora::protocols::Digest> {
            self.real().digest()
        }

        fn digest_mut(&mut self) -> Option<&mut pingora::protocols::Digest> {
            self.real_mut().digest_mut()
        }

        fn client_addr(&self) -> Option<&pingora::protocols::l4::socket::SocketAddr> {
            self.real().client_addr()
        }

        fn server_addr(&self) -> Option<&pingora::protocols::l4::socket::SocketAddr> {
            self.real().server_addr()
        }

        fn take_custom_message_reader(
            &mut self,
        ) -> Option<Box<dyn futures::Stream<Item = pingora::Result<bytes::Bytes>> + Unpin + Send + Sync + 'static>> {
            self.is_attempt().then(|| Box::new(futures::stream::empty()) as _)
        }

        fn restore_custom_message_reader(
            &mut self,
            _reader: Box<dyn futures::Stream<Item = pingora::Result<bytes::Bytes>> + Unpin + Send + Sync + 'static>,
        ) -> pingora::Result<()> {
            Ok(())
        }

        fn take_custom_message_writer(
            &mut self,
        ) -> Option<Box<dyn pingora::protocols::http::custom::CustomMessageWrite>> {
            self.is_attempt().then(|| Box::new(()) as _)
        }

        fn restore_custom_message_writer(
            &mut self,
            _writer: Box<dyn pingora::protocols::http::custom::CustomMessageWrite>,
        ) -> pingora::Result<()> {
            Ok(())
        }
    };
}

pub(crate) use as_the_clients_own;
