package release

func holdChild([]string) {}
