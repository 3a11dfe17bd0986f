"""The data plane: answers Envoy, folds its access log, keeps serving without a control plane."""
