# Install rules and CPack (to come).
