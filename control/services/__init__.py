"""gRPC servicers: decode -> pure call or controller command -> encode."""
