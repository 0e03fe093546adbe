package pgproxy

func clientTests() []proxyTest { return nil }
