# Install rules (cmake --install) and binary packages (cpack -G TGZ or DEB, docs/building.md).
include(GNUInstallDirs)

set(osdn_data_dir "${CMAKE_INSTALL_DATADIR}/osdn-server")  # proto/ installs the .proto files there too
foreach(program osdn-server osdn-tools)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
endforeach()
if(TARGET osdn_cuda)  # opened at run time from beside the programs or from lib/osdn
  install(TARGETS osdn_cuda LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}/osdn")
endif()
install(DIRECTORY "${PROJECT_SOURCE_DIR}/models/" DESTINATION "${osdn_data_dir}/models")
install(FILES "${PROJECT_SOURCE_DIR}/deploy/server.yaml" DESTINATION "${osdn_data_dir}" OPTIONAL)
install(FILES "${PROJECT_SOURCE_DIR}/README.md" "${PROJECT_SOURCE_DIR}/LICENSE"
              "${PROJECT_SOURCE_DIR}/CHANGELOG.md"
        DESTINATION "${CMAKE_INSTALL_DOCDIR}")

set(CPACK_PACKAGE_VENDOR "osdn-server")
set(CPACK_PACKAGE_CONTACT "osdn-server maintainers <maintainers@osdn-server.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
set(CPACK_PACKAGE_FILE_NAME
    "${PROJECT_NAME}-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}")
set(CPACK_STRIP_FILES ON)
set(CPACK_GENERATOR TGZ)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)  # needs dpkg-shlibdeps, of Debian's dpkg-dev
include(CPack)
