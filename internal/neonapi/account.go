package neonapi

// Auth answers GET /auth, which Neon's command line asks before everything.
type Auth struct {
	AccountID  string `json:"account_id"`
	AuthMethod string `json:"auth_method"`
	AuthData   string `json:"auth_data"`
}

// User answers GET /users/me: the one account that an API key stands for.
type User struct {
	ID                  string   `json:"id"`
	Login               string   `json:"login"`
	Email               string   `json:"email"`
	Name                string   `json:"name"`
	LastName            string   `json:"last_name"`
	Image               string   `json:"image"`
	ProjectsLimit       int      `json:"projects_limit"`
	BranchesLimit       int      `json:"branches_limit"`
	MaxAutoscalingLimit float64  `json:"max_autoscaling_limit"`
	ActiveSecondsLimit  int64    `json:"active_seconds_limit"`
	AuthAccounts        []string `json:"auth_accounts"`
	Plan                string   `json:"plan"`
}

// OrganizationList answers GET /users/me/organizations. There are none.
type OrganizationList struct {
	Organizations []struct{} `json:"organizations"`
}

// RegionList answers GET /regions: the server's own machine.
type RegionList struct {
	Regions []Region `json:"regions"`
}

// Region is a place where projects live.
type Region struct {
	RegionID string `json:"region_id"`
	Name     string `json:"name"`
	Default  bool   `json:"default"`
	GeoLat   string `json:"geo_lat"`
	GeoLong  string `json:"geo_long"`
}
